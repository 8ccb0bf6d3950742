"""Find the architecture of weights by the names and shapes of their tensors, or by what a file says of itself.

Names and shapes of torchvision's architectures are written once per machine into the user's cache folder. timm's are
too many for that, so they are taken at their word where a file or its folder names one, and checked like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from raysnap.errors import ArchitectureError, WeightsError
from raysnap.models.architecture import TIMM, TORCHVISION, architecture, shown
from raysnap.models.block import Shape
from raysnap.models.block_facts import architecture_tensors
from raysnap.models.blocks import list_architectures
from raysnap.models.weight_sets import BATCH_COUNT, find_sets

MAX_NAMED = 5


def named_in(description: Mapping[str, object]) -> list[str]:
    """Return the architectures that a description of weights can mean: a `config.json`, or a checkpoint's own facts.

    timm's configurations and checkpoints, and torchvision's reference script, name it; whose it is, they don't say.
    """
    name = description.get("architecture") or description.get("arch")
    options = description.get("model_args")
    if not isinstance(name, str):
        return []
    found = [name] if name in list_architectures(TORCHVISION) else []
    try:
        of_timm = str(architecture(TIMM, name.partition(".")[0], options if isinstance(options, dict) else {}))
    except ArchitectureError:
        return found
    return [of_timm, *found] if "pretrained_cfg" in description else [*found, of_timm]


def recognise(entries: Mapping[str, Mapping[str, Shape]]) -> str:
    """Return the one architecture whose tensors these are, whatever their names begin with and the head is.

    Args:
        entries: the shapes of the tensors of each of a file's entries, by name.

    Raises:
        WeightsError: none fits, or several do equally well; the message lists them.
    """
    counts = {name: max(_num_fitting(name, shapes) for shapes in entries.values()) for name in _candidates()}
    most = max(counts.values(), default=0)
    if most == 0:
        raise WeightsError(
            "expected tensors of an architecture of torchvision, found others; name the architecture with --arch"
        )
    best = [name for name, count in counts.items() if count == most]
    if len(best) > 1:
        ways = " or ".join(f"--arch {shown(name)}" for name in best[:MAX_NAMED])
        raise WeightsError(f"expected tensors of one architecture, found that they fit {len(best)}: {ways}")
    return best[0]


@lru_cache
def _candidates() -> Mapping[str, tuple[dict[str, Shape], str]]:
    """Return the shapes of each architecture's tensors below the head, and the name of the first."""
    found = {}
    for name, tensors in architecture_tensors().items():
        body = {key: tuple(shape) for key, shape in tensors.items() if not key.endswith(BATCH_COUNT)}
        found[name] = body, next(iter(body))
    return found


def _num_fitting(name: str, shapes: Mapping[str, Shape]) -> int:
    """Return how many tensors the architecture has, if all below the head are among these under one prefix."""
    body, first = _candidates()[name]
    prefixes = (full.removesuffix(first) for full in shapes if full.endswith(first))
    return len(body) if any(_fits(body, shapes, prefix) for prefix in prefixes) else 0


def _fits(body: Mapping[str, Shape], shapes: Mapping[str, Shape], prefix: str) -> bool:
    is_whole = not prefix or prefix.endswith(".")
    return is_whole and all(shapes.get(prefix + key) == shape for key, shape in body.items())


def choose(candidates: Iterable[str], entries: Mapping[str, Mapping[str, Shape]]) -> str:
    """Return the first of these architectures that is known here and whose tensors are among those, or recognise it.

    Raises:
        WeightsError: none of them is, and `recognise` finds none.
    """
    for name in candidates:
        for headless in (False, True):
            try:
                if find_sets(name, entries, headless=headless):
                    return name
            except (ArchitectureError, WeightsError):
                continue
    return recognise(entries)
