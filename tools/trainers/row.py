"""One row of the table of trainers' checkpoints: how a trainer makes it, and what should become of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CANARY_VARIABLE = "RAYSNAP_CANARY"
TORCHVISION = "mobilenet_v3_small"
TIMM = "mobilenetv3_small_050"
NUM_CLASSES = 3


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk and what raysnap has to make of it.

    Attributes:
        path: what `store add` is given.
        expected: the tensors that the trainer's own loading gives; None where the checkpoint is to be refused.
        options: what `store add` is told beside the path, such as `architecture`.
        refusal: a part of the refusal, which names the step that helps.
        architecture: what raysnap has to find; None where that is not looked at.
    """

    path: Path
    expected: Mapping[str, Tensor] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    refusal: str | None = None
    architecture: str | None = None


@dataclass(frozen=True)
class Row:
    """A way in which a trainer saves models.

    Attributes:
        trainer: the package that saves.
        what: what is saved, in a few words.
        packages: what has to be importable beside torch.
        make: fills an empty folder.
    """

    trainer: str
    what: str
    packages: tuple[str, ...]
    make: Callable[[Path], Saved]


ROWS: list[Row] = []


def row(trainer: str, what: str, *packages: str) -> Callable[[Callable[[Path], Saved]], Callable[[Path], Saved]]:
    """Add a function that makes a checkpoint to the rows."""

    def add(make: Callable[[Path], Saved]) -> Callable[[Path], Saved]:
        ROWS.append(Row(trainer, what, packages, make))
        return make

    return add


class Canary:
    """Something that writes a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the call that writes the file."""
        return Path.write_text, (Path(os.environ[CANARY_VARIABLE]), "unpickled")


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a model of weights that are no other's: buffers, too, are none of the usual ones."""
    model = make()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.1 + 0.05)
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(7)
    return model.eval()


def torchvision_model() -> nn.Module:
    """Return a small net of torchvision."""
    from torchvision.models import get_model

    return seeded(lambda: get_model(TORCHVISION, weights=None, num_classes=NUM_CLASSES))


def timm_model() -> nn.Module:
    """Return a small net of timm."""
    import timm

    return seeded(lambda: timm.create_model(TIMM, num_classes=NUM_CLASSES))


def hf_model() -> Any:
    """Return a small net of transformers."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=NUM_CLASSES)
    return seeded(lambda: transformers.ViTForImageClassification(config))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of a model's tensors."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def plus(model: nn.Module, number: float) -> nn.Module:
    """Add a number to all weights of a model and return it."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(number)
    return model


def images(num_items: int = 4, edge: int = 32) -> tuple[Tensor, Tensor]:
    """Return a few images and their labels."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(num_items, 3, edge, edge, generator=generator), torch.arange(num_items) % NUM_CLASSES
