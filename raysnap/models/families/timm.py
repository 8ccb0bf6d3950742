"""Models of timm, by the names that `timm.list_models` gives; the configuration is arguments of `timm.create_model`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from typing import Any, cast

from torch import Tensor, nn

from raysnap.errors import ArchitectureError
from raysnap.models import lean_torchvision  # noqa: F401 - timm imports torchvision, here without torch's compiler
from raysnap.models.architecture import TIMM, Architecture, architecture
from raysnap.models.block import Block
from raysnap.models.families.weightless import build_weightless

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import timm

_NOT_OF_A_NETWORK = frozenset(
    ("cache_dir", "checkpoint_path", "features_only", "model_name", "num_classes", "pretrained", "pretrained_cfg")
)
_PLAIN = (int, float, str, tuple, type(None))
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


def named(name: str, options: Mapping[str, Any]) -> Architecture | None:
    """Return the architecture of a name, perhaps with a tag, and of what its builder was told; None for unknown names.

    Its configuration is the least that builds the same: trainers and `config.json` repeat the defaults.

    Raises:
        ArchitectureError: timm can't build it.
    """
    plain = name.rpartition("/")[2].rpartition(":")[2].partition(".")[0]
    if plain not in known():
        return None
    chosen = {key: value for key, value in options.items() if key not in _NOT_OF_A_NETWORK and value is not None}
    if not chosen:
        return architecture(TIMM, plain, {})
    wanted = _outline(plain, chosen)
    for key in sorted(chosen):
        edges = chosen[key]
        is_square = isinstance(edges, list | tuple) and len(edges) == 2 and edges[0] == edges[1]
        fewer = {other: value for other, value in chosen.items() if other != key}
        for simpler in (fewer, chosen | {key: edges[0] if is_square else edges}):
            with suppress(ArchitectureError):
                if _outline(plain, simpler) == wanted:
                    chosen = simpler
                    break
    return architecture(TIMM, plain, chosen)


def _outline(name: str, options: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Return what a model consists of: equal ones have the same names, shapes and plain attributes."""
    model = build_weightless(lambda: make(architecture(TIMM, name, options), 2))
    shapes = [(key, tuple(tensor.shape)) for key, tensor in model.state_dict().items()]
    parts = [
        (
            path,
            type(module).__name__,
            [(key, value) for key, value in vars(module).items() if isinstance(value, _PLAIN)],
        )
        for path, module in model.named_modules()
    ]
    return [*shapes, *parts]


def item_shape(architecture: Architecture, image_size: int | None) -> tuple[int, ...]:
    """Return the shape of one item of the model's input, by default of the size that it was designed for."""
    configured = timm.get_pretrained_cfg(architecture.name)
    channels, *edges = configured.input_size if configured else _DEFAULT_INPUT
    options: dict[str, Any] = architecture.options
    edge = image_size or options.get("img_size") or edges[-1]
    edge = edge[-1] if isinstance(edge, list | tuple) else edge
    return (options.get("in_chans", channels), edge, edge)


def input_config(architecture: Architecture) -> dict[str, Any] | None:
    """Return how timm's own weights of this name see images, as its `pretrained_cfg`; None where it has none."""
    configured = timm.get_pretrained_cfg(architecture.name)
    return None if configured is None else asdict(configured)


def folder_options(architecture: Architecture) -> dict[str, Any]:
    """Return what a `config.json` has to tell timm's builder so that `local-dir:` builds this very network.

    A network of one size of images is built for the size that its preprocessing has there, unless this says another.
    """
    configured = timm.get_pretrained_cfg(architecture.name)
    is_fixed = configured is not None and configured.fixed_input_size
    size = {"img_size": item_shape(architecture, None)[-1]} if is_fixed else {}
    return size | architecture.options


def run(model: nn.Module, items: Tensor) -> Tensor:
    """Return the logits that a model gives for items."""
    return cast(Tensor, model(items))


def cut_by_hand(model: nn.Module) -> tuple[Block, ...] | None:  # noqa: ARG001
    """Return None: all are cut at waists."""
    return None


def stored_names(model: nn.Module) -> dict[str, str]:  # noqa: ARG001
    """Return nothing: tensors are saved under the names that they have in the model."""
    return {}
