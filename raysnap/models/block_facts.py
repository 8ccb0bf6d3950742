"""What an architecture's blocks are and cost, without torch: measured once per machine, then read from a file.

Planning a job, a dry run above all, needs names, shapes, FLOPs and bytes, but no model. `models.blocks` measures them
on the meta device, which takes seconds of imports. The files are in the user's cache folder, in a subfolder for this
`FACTS_VERSION` and these versions of torch and torchvision, so no other version reads them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from typing import Any, TypeVar

from raysnap.atomic import write_atomically
from raysnap.models.block_shape import BlockShape
from raysnap.system import package_version, user_cache_dir

FACTS_VERSION = 2
"""Increase it with every change to how `models.blocks` cuts, names or measures blocks; then all are measured again."""

Facts = TypeVar("Facts")


@lru_cache
def num_body_blocks(architecture: str) -> int:
    """Return `L`, the number of blocks between stem and head, which is the largest retrain index.

    Raises:
        ArchitectureError: torchvision has no such model, or it can't be split.
    """

    def measure() -> int:
        from raysnap.models.blocks import block_names

        return len(block_names(architecture)) - 2

    return _cached(f"{architecture}-num-body-blocks", measure)


@lru_cache
def num_body_parameters(architecture: str) -> int:
    """Return how many parameters an architecture has below the head.

    Raises:
        ArchitectureError: torchvision has no such model, or it can't be split.
    """

    def measure() -> int:
        from raysnap.models.blocks import count_body_parameters

        return count_body_parameters(architecture)

    return _cached(f"{architecture}-num-body-parameters", measure)


@lru_cache
def block_shapes(architecture: str, image_size: int) -> tuple[BlockShape, ...]:
    """Return output shape, FLOPs and bytes of every block for square images, with a head of 1000 classes.

    Args:
        architecture: torchvision's builder name.
        image_size: edge of the images, in pixels.

    Raises:
        ArchitectureError: the architecture is unknown or can't take images of that size.
    """

    def measure() -> list[dict[str, Any]]:
        from raysnap.models.blocks import measure_blocks

        return [asdict(shape) for shape in measure_blocks(architecture, image_size)]

    shapes = _cached(f"{architecture}-{image_size}", measure)
    return tuple(BlockShape(**shape | {"output_shape": tuple(shape["output_shape"])}) for shape in shapes)


@lru_cache
def weights_files(architecture: str) -> dict[str, str]:
    """Return the file of each of torchvision's weights for the architecture, by each of its names.

    `IMAGENET1K_V1` and `ResNet18_Weights.IMAGENET1K_V1` are the same weights; `DEFAULT` is a name too.
    """

    def look_up() -> dict[str, str]:
        from raysnap.models.lean_torchvision import models

        known = models.get_model_weights(architecture)
        files = {name: entry.url.rsplit("/", 1)[-1] for name, entry in known.__members__.items()}
        return files | {f"{known.__name__}.{name}": file for name, file in files.items()}

    return _cached(f"{architecture}-weights", look_up)


def _cached(name: str, measure: Callable[[], Facts]) -> Facts:
    """Return the JSON value in the cache's file with this name; if it is missing or damaged, measure and write it."""
    if not re.fullmatch(r"[\w-]+", name):
        return measure()  # not the name of an architecture, which `measure` rejects
    folder = user_cache_dir() / "block_facts" / _versions()
    facts: Facts
    with suppress(OSError, ValueError):
        facts = json.loads((folder / f"{name}.json").read_bytes())
        return facts
    text = json.dumps(measure())
    with suppress(OSError):  # a cache that can't be written costs seconds, nothing else
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{name}.json", text)
    facts = json.loads(text)
    return facts


@lru_cache
def _versions() -> str:
    """Return the name of the cache's folder: the versions that the facts depend on."""
    return f"{FACTS_VERSION}-torch-{package_version('torch')}-torchvision-{package_version('torchvision')}"
