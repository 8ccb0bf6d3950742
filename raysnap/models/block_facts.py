"""What an architecture's blocks are and cost, told without torch: found out once per machine, then read from a file.

Planning a job, a dry run above all, needs names, shapes, FLOPs and bytes, but no model. `models.blocks` finds them on
the meta device, which takes seconds of imports; the files lie in the user's cache folder, under a digest of whatever
the answers follow from, so another torchvision or raysnap never sees them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from blake3 import blake3

from raysnap.atomic import write_atomically
from raysnap.models.block_shape import BlockShape
from raysnap.system import user_cache_dir


@lru_cache
def num_body_blocks(architecture: str) -> int:
    """`L`: how many blocks stand between stem and head, the largest retrain index.

    Raises:
        ArchitectureError: torchvision has no such model, or it can't be split.
    """

    def find_out() -> int:
        from raysnap.models.blocks import block_names

        return len(block_names(architecture)) - 2

    return _remembered(f"{architecture}-num-body-blocks", find_out)


@lru_cache
def block_shapes(architecture: str, image_size: int) -> tuple[BlockShape, ...]:
    """Output shape, FLOPs and bytes of every block for square images of `image_size` pixels; heads of 1000 classes.

    Raises:
        ArchitectureError: the architecture is unknown or can't take images of that size.
    """

    def find_out() -> list[dict[str, Any]]:
        from raysnap.models.blocks import measure_blocks

        return [asdict(shape) for shape in measure_blocks(architecture, image_size)]

    found = _remembered(f"{architecture}-{image_size}", find_out)
    return tuple(BlockShape(**shape | {"output_shape": tuple(shape["output_shape"])}) for shape in found)


@lru_cache
def weights_files(architecture: str) -> dict[str, str]:
    """The file of each of torchvision's weights for the architecture, which go by two names each.

    `IMAGENET1K_V1` and `ResNet18_Weights.IMAGENET1K_V1` are one; `DEFAULT` is a name too.
    """

    def find_out() -> dict[str, str]:
        from torchvision.models import get_model_weights

        known = get_model_weights(architecture)
        files = {name: entry.url.rsplit("/", 1)[-1] for name, entry in known.__members__.items()}
        return files | {f"{known.__name__}.{name}": file for name, file in files.items()}

    return _remembered(f"{architecture}-weights", find_out)


def _remembered(name: str, find_out: Callable[[], Any]) -> Any:
    """The JSON value in the cache's file of that name, which is made by `find_out` where it is missing or torn."""
    folder = user_cache_dir() / "anatomy" / _fingerprint()
    if not re.fullmatch(r"[\w-]+", name):
        return find_out()  # the name of no architecture, which `find_out` refuses
    with suppress(OSError, ValueError):
        return json.loads((folder / f"{name}.json").read_bytes())
    text = json.dumps(find_out())
    with suppress(OSError):  # a cache that can't be written costs seconds, nothing else
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{name}.json", text)
    return json.loads(text)


@lru_cache
def _fingerprint() -> str:
    """A digest of what the answers follow from: the code that splits models, and torchvision's version."""
    code = Path(__file__).with_name("blocks.py").read_bytes()
    return blake3(code + os.fsencode(version("torchvision") + version("torch"))).hexdigest()[:32]
