"""Models of timm, by the names that `timm.list_models` gives; the configuration is arguments of `timm.create_model`."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any, cast

from torch import Tensor, nn

from raysnap.errors import ArchitectureError
from raysnap.models import lean_torchvision  # noqa: F401 - timm imports torchvision, here without torch's compiler
from raysnap.models.architecture import Architecture
from raysnap.models.block import Block

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import timm

_NOT_OF_A_NETWORK = frozenset(
    ("cache_dir", "checkpoint_path", "features_only", "model_name", "num_classes", "pretrained", "pretrained_cfg")
)
_DEFAULT_INPUT = (3, 224, 224)


@cache
def known() -> tuple[str, ...]:
    """Return the names of all of timm's models, without tags of weights."""
    return tuple(sorted(timm.list_models()))


def make(architecture: Architecture, num_classes: int) -> nn.Module:
    """Return timm's own model with random weights."""
    options = architecture.options
    if wrong := sorted(_NOT_OF_A_NETWORK & options.keys()):
        raise ArchitectureError(f"architecture {architecture.shown!r}: {wrong[0]} can't be part of its configuration")
    try:
        return timm.create_model(architecture.name, num_classes=num_classes, **options)
    except (TypeError, ValueError, RuntimeError, AssertionError, LookupError) as error:
        if not options:
            raise
        raise ArchitectureError(
            f"architecture {str(architecture)!r}: timm.create_model rejects this configuration: {error}"
        ) from None


def item_shape(architecture: Architecture, image_size: int | None) -> tuple[int, ...]:
    """Return the shape of one item of the model's input, by default of the size that it was designed for."""
    configured = timm.get_pretrained_cfg(architecture.name)
    channels, *edges = configured.input_size if configured else _DEFAULT_INPUT
    options: dict[str, Any] = architecture.options
    edge = image_size or options.get("img_size") or edges[-1]
    edge = edge[-1] if isinstance(edge, list | tuple) else edge
    return (options.get("in_chans", channels), edge, edge)


def run(model: nn.Module, items: Tensor) -> Tensor:
    """Return the logits that a model gives for items."""
    return cast(Tensor, model(items))


def cut_by_hand(model: nn.Module) -> tuple[Block, ...] | None:  # noqa: ARG001
    """Return None: all are cut at waists."""
    return None
