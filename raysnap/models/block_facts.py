"""What an architecture's blocks are and cost, without torch: measured once per machine, then read from a file.

Planning a job, a dry run above all, needs names, shapes, FLOPs and bytes, but no model. `models.blocks` measures them
on the meta device, which takes seconds of imports. The files are in the user's cache folder, in a subfolder for this
`FACTS_VERSION` and these versions of torch and torchvision, so no other version reads them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, TypeVar

from blake3 import blake3

from raysnap.atomic import write_atomically
from raysnap.errors import ArchitectureError
from raysnap.models.architecture import HF, TORCHVISION, package_of, parse
from raysnap.models.block_shape import BlockShape
from raysnap.system import package_version, user_cache_dir

FACTS_VERSION = 3
"""Increase it with every change to how `models.blocks` cuts, names or measures blocks; then all are measured again."""

RENORMALISING = ("googlenet", "inception_v3")
"""With weights given, torchvision's builder makes these turn ImageNet's mean and deviation into 0.5 before the stem."""

_HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}

Facts = TypeVar("Facts")


@lru_cache
def num_body_blocks(architecture: str) -> int:
    """Return `L`, the number of blocks between stem and head, which is the largest retrain index.

    Raises:
        ArchitectureError: the architecture is unknown or can't be split.
    """

    def measure() -> int:
        from raysnap.models.blocks import block_names

        return len(block_names(architecture)) - 2

    return _cached(architecture, "num-body-blocks", measure)


@dataclass(frozen=True)
class TextFacts:
    """What a model of texts takes.

    Attributes:
        padding: the token that fills up short texts.
        vocab_size: how many tokens it knows.
        longest: how many tokens a text may have; None for any number.
    """

    padding: int
    vocab_size: int
    longest: int | None


@lru_cache
def text_facts(architecture: str) -> TextFacts | None:
    """Return what an architecture takes whose items are texts; None where they are images.

    Raises:
        ArchitectureError: the architecture is unknown.
    """
    if parse(architecture).family != HF:
        return None

    def look_up() -> dict[str, int | None] | None:
        from raysnap.models.families import family

        return family.text_facts(architecture)

    found: Any = _cached(architecture, "text", look_up)
    return None if found is None else TextFacts(**found)


def sees_texts(architecture: str) -> bool:
    """Return whether an architecture's items are texts; not where nothing is known of it here."""
    try:
        return text_facts(architecture) is not None
    except ArchitectureError:
        return False


@lru_cache
def num_body_parameters(architecture: str) -> int:
    """Return how many parameters an architecture has below the head.

    Raises:
        ArchitectureError: the architecture is unknown or can't be split.
    """

    def measure() -> int:
        from raysnap.models.blocks import count_body_parameters

        return count_body_parameters(architecture)

    return _cached(architecture, "num-body-parameters", measure)


@lru_cache
def block_shapes(architecture: str, image_size: int) -> tuple[BlockShape, ...]:
    """Return output shape, FLOPs and bytes of every block for square images, with a head of 1000 classes.

    Args:
        architecture: the string that names it, as `models.architecture` says.
        image_size: edge of the images, in pixels.

    Raises:
        ArchitectureError: the architecture is unknown or can't take images of that size.
    """

    def measure() -> list[dict[str, Any]]:
        from raysnap.models.blocks import measure_blocks

        return [asdict(shape) for shape in measure_blocks(architecture, image_size)]

    shapes = _cached(architecture, str(image_size), measure)
    return tuple(BlockShape(**shape | {"output_shape": tuple(shape["output_shape"])}) for shape in shapes)


@lru_cache
def architecture_tensors() -> dict[str, dict[str, list[int]]]:
    """Return the shapes of the tensors below the head, by name, of each architecture of torchvision that can be split.

    The first time on a machine this takes as long as building all of them without weights.
    """

    def measure() -> dict[str, dict[str, list[int]]]:
        from raysnap.models.blocks import block_skeleton, list_architectures, shapes_of

        found = {}
        for name in list_architectures(TORCHVISION):
            with suppress(ArchitectureError):
                head = block_skeleton(name, -1).tensors()
                found[name] = {key: list(shape) for key, shape in shapes_of(name).items() if key not in head}
        return found

    return _cached(TORCHVISION, "tensors", measure)


@lru_cache
def weights_files(architecture: str) -> dict[str, str]:
    """Return the file of each of torchvision's weights for the architecture, by each of its names.

    `IMAGENET1K_V1` and `ResNet18_Weights.IMAGENET1K_V1` are the same weights; `DEFAULT` is a name too. Of another
    library's architecture there are none.
    """
    if parse(architecture).family != TORCHVISION:
        return {}

    def look_up() -> dict[str, str]:
        from raysnap.models.lean_torchvision import models

        known = models.get_model_weights(architecture)
        files = {name: entry.url.rsplit("/", 1)[-1] for name, entry in known.__members__.items()}
        return files | {f"{known.__name__}.{name}": file for name, file in files.items()}

    return _cached(architecture, "weights", look_up)


@lru_cache
def weights_inputs(architecture: str) -> dict[str, dict[str, Any]]:
    """Return how each of torchvision's weights for the architecture sees images, by each of its names.

    The values are the fields of a store's `Preprocessing`. Of another library's architecture there are none. Blocks are
    those of a model that was built without weights, so the fields of `RENORMALISING` ones say what their weights take.
    """
    if parse(architecture).family != TORCHVISION:
        return {}

    def look_up() -> dict[str, dict[str, Any]]:
        from raysnap.models.lean_torchvision import models

        known = models.get_model_weights(architecture)
        changes = _HALF if architecture in RENORMALISING else {}
        found = {name: input_fields(entry.transforms()) | changes for name, entry in known.__members__.items()}
        return found | {f"{known.__name__}.{name}": fields for name, fields in found.items()}

    return _cached(architecture, "weights-inputs", look_up)


def input_fields(transform: Any) -> dict[str, Any]:
    """Return what torchvision's preset for classification does: it resizes the shorter side and crops the centre."""
    return {
        "resize_size": transform.resize_size[0],
        "image_size": transform.crop_size[0],
        "mean": list(transform.mean),
        "std": list(transform.std),
        "interpolation": transform.interpolation.value,
    }


def _cached(text: str, fact: str, measure: Callable[[], Facts]) -> Facts:
    """Return the JSON value in the file of a fact; if it is missing or damaged, measure and write it."""
    architecture = parse(text)
    name = f"{architecture}-{fact}"
    if architecture.family != TORCHVISION:  # neither slashes nor a configuration are for the names of files
        digest = blake3(str(architecture).encode()).hexdigest()[:16]
        name = f"{architecture.family}-{architecture.name}-{digest}-{fact}"
    folder = user_cache_dir() / "block_facts" / _versions(architecture.family)
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
def _versions(family: str) -> str:
    """Return the name of the cache's folder: the versions that the facts depend on."""
    packages = dict.fromkeys(("torch", TORCHVISION, package_of(family)))
    return "-".join([str(FACTS_VERSION), *(f"{package}-{package_version(package)}" for package in packages)])
