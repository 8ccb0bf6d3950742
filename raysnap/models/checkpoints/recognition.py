"""Find the architecture of weights by the names and shapes of their tensors, or by what a file says of itself.

Names and shapes of torchvision's architectures are written once per machine into the user's cache folder. timm's are
too many for that, so they are taken at their word where a file or its folder names one, and checked like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache

from raysnap.errors import ArchitectureError, WeightsError
from raysnap.models.architecture import HF, TORCHVISION, parse, shown
from raysnap.models.block import Shape
from raysnap.models.block_facts import architecture_tensors
from raysnap.models.blocks import list_architectures
from raysnap.models.checkpoints.inert_pickles import Made
from raysnap.models.families import family
from raysnap.models.weight_sets import BATCH_COUNT, find_sets

MAX_NAMED = 8

# Where trainers keep the name of the architecture, among which options, and what else it was built with.
_NAMES = ("architecture", "arch", "model_name", "model", "backbone", "net", "encoder_name")
_OPTIONS = ("args", "hyper_parameters", "hparams", "config", "cfg", "opt", "train_args")
_ARGUMENTS = ("model_args", "model_kwargs")
_NOT_OF_HF = ("timm_wrapper",)


def find_architecture(
    facts: Mapping[str, object], config: Mapping[str, object] | None, entries: Mapping[str, Mapping[str, Shape]]
) -> str:
    """Return the architecture that weights are of, by what is said of them, or by their names and shapes.

    Args:
        facts: what a checkpoint says of itself.
        config: the `config.json` of its folder.
        entries: the shapes of the tensors of each of the file's entries, by name.

    Raises:
        ArchitectureError: `config` is of a library that is missing here, or that can't build the model.
        WeightsError: the tensors are not those of what `config` says, or of nothing known.
    """
    own = named_in(facts)
    if config is None:
        return choose(own, entries)
    name = config.get("model_type")
    described = family.described(dict(config)) if isinstance(name, str) and name not in _NOT_OF_HF else None
    if described is None:
        return choose([*named_in(config), *own], entries)
    # The same network may have been given another string, with values that are the defaults.
    spelled = [one for one in own if parse(one).family == HF and one != described]
    return next((one for one in spelled if family.described(family.config_document(one, 2)) == described), described)


def named_in(facts: Mapping[str, object]) -> list[str]:
    """Return the architectures that a checkpoint's own facts name, or timm's `config.json`.

    Trainers keep a name (`arch`) beside the weights, or among the options that they were started with (`args`,
    `hyper_parameters`). Whose it is, they don't say.
    """
    found: list[str] = []
    for options in (facts, *(_members(facts.get(key)) for key in _OPTIONS)):
        more = next((one for one in map(_members, map(options.get, _ARGUMENTS)) if one), {})
        for key in _NAMES:
            if isinstance(name := options.get(key), str):
                found += _meant(name, more, is_timm="pretrained_cfg" in options)
    return list(dict.fromkeys(found))[:MAX_NAMED]


def _meant(name: str, options: Mapping[str, object], *, is_timm: bool) -> list[str]:
    """Return the architectures that a name can mean, which may have what hubs add to it: `timm/resnet18.a1_in1k`."""
    found = []
    with suppress(ArchitectureError):
        if ("{" in name or "/" in name) and family.is_known(name):
            found.append(str(parse(name)))
    if (plain := name.partition(".")[0]) in list_architectures(TORCHVISION):
        found.append(plain)
    with suppress(ArchitectureError):
        if of_timm := family.timm_architecture(name, options):
            found.insert(0 if is_timm else len(found), of_timm)
    return found


def _members(value: object) -> Mapping[str, object]:
    """Return what options have by name, of a dictionary or a stand-in for a namespace."""
    if isinstance(value, Made):
        value = value.state if isinstance(value.state, dict) else value.items
    return value if isinstance(value, Mapping) else {}


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
            "expected tensors of an architecture of torchvision, found others; name theirs with --arch, such as "
            "timm/resnet18, or add the folder with its config.json"
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
        WeightsError: none of them is, and `recognise` finds none; the message is of the first that is known.
    """
    first_error: WeightsError | None = None
    for name in candidates:
        for headless in (False, True):
            try:
                if find_sets(name, entries, headless=headless):
                    return name
            except ArchitectureError:
                break
            except WeightsError as error:
                first_error = first_error or error
    try:
        return recognise(entries)
    except WeightsError as error:
        raise (first_error or error) from None
