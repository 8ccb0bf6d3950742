"""What a sweep tries: points drawn from its space, the same for the same seed on any machine, each as a trial.

A point gives some dotted keys of a fine-tune's configuration a value. Grids are combined with each other; everything
else is drawn once for each combination. The values of a key may depend on those of others.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from raysnap.config.choices import Role
from raysnap.config.load import validate
from raysnap.config.space_entry import SpaceEntry
from raysnap.config.strict import Config
from raysnap.config.sweep import PointConfig, SweepConfig
from raysnap.errors import ConfigError
from raysnap.models.architecture import label
from raysnap.models.block_facts import num_body_blocks
from raysnap.planning.sampling import truncated_normal
from raysnap.training.schedules import block_lrs
from raysnap.training.trial import Trial, derive_seed, slug

MAX_TRIALS = 10_000
MAX_SHOWN_VALUES = 4
SIGNIFICANT_DIGITS = 6

Space = Mapping[str, tuple[SpaceEntry, ...]]
Choose = Callable[[str, SpaceEntry], Any]
"""Takes a key and its active entry, returns the label or the position of an option, or a number in a range."""


@dataclass(frozen=True)
class Point:
    """What is sampled for one fine-tune, by dotted key: the values, and how they are shown (by label if there is one).

    Attributes:
        sample: which of the sweep's `num_samples` it belongs to, from 1.
    """

    values: dict[str, Any]
    shown: dict[str, Any]
    sample: int


def space_of(config: SweepConfig) -> dict[str, tuple[SpaceEntry, ...]]:
    """Return the configuration's space, with lists of architectures and datasets as grids."""
    space = dict(config.space)
    for key, names in (("dataset", config.datasets), ("architecture", config.architectures)):
        if len(names) > 1 and key not in space:
            space = {key: (SpaceEntry(grid=names),), **space}
    return space


def sample_points(config: SweepConfig) -> list[Point]:
    """Return all points of a sweep in order: every combination of the grids, `num_samples` times.

    Raises:
        ConfigError: there are more than `MAX_TRIALS`, or conditions depend on each other in a circle.
    """
    space = space_of(config)
    points: list[Point] = []
    structure, others = _order(space)
    own = own_values(config)
    for sample in range(1, config.num_samples + 1):
        for values, shown in _combinations(space, structure, own, sample, points, config.seed):
            if len(points) == MAX_TRIALS:
                raise ConfigError(
                    f"space: expected at most {MAX_TRIALS:,} trials, found up to {_most_points(config, space):,}; "
                    "shorten grids, or use choice with num_samples"
                )
            choose = _seeded_choice(config.seed, sample, len(points))
            values, shown = resolve(space, others, choose, own, values, shown)
            points.append(Point(values, shown, sample))
    return points


def resolve(
    space: Space,
    keys: list[str],
    choose: Choose,
    own: Mapping[str, Any],
    values: Mapping[str, Any] | None = None,
    shown: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Choose values for these keys, given those of others; return all values and how they are shown.

    The keys are in the order of `search_order`.

    Args:
        own: the configuration's own values, by dotted key.
    """
    values, shown = dict(values or {}), dict(shown or {})
    for key in keys:
        entry = _active_entry(space[key], {**own, **shown}, {**own, **values})
        if entry is not None:
            values[key], shown[key] = _chosen(key, entry, choose(key, entry))
    return values, shown


def search_order(space: Space) -> list[str]:
    """Return the keys in an order in which each follows those that its conditions name."""
    structure, others = _order(space)
    return [*structure, *others]


def point_trial(config: SweepConfig, point: Point, number: int, num_trials: int) -> tuple[Trial, PointConfig]:
    """Return the fine-tune at a point, validated like any configuration, and the configuration it comes from.

    Trials of one sample share a seed, so that they differ in nothing but their points.

    Raises:
        ConfigError: the values don't fit the configuration's models, or the architecture.
    """
    where = f"space: trial {number} ({_shown_text(point.shown)})"
    point_config = validate(_overlaid(config, point.values), PointConfig, where=where)
    retrain_index = _retrain_index(point_config, where)
    num_trained = num_body_blocks(point_config.architecture) + 2 if retrain_index is None else retrain_index + 1
    try:
        block_lrs(point_config.train, num_trained)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    train = point_config.train
    if config.scheduler == "pbt":
        train = train.model_copy(update={"checkpoint_every": config.perturb_epochs})
    name = "-".join(_word(key, value) for key, value in point.shown.items())
    width = max(3, len(str(num_trials)))
    trial = Trial(
        id=slug(f"{number:0{width}d}-{name or f'{label(point_config.architecture)}-{slug(point_config.dataset)}'}"),
        role=Role.FINETUNE,
        architecture=point_config.architecture,
        dataset=point_config.dataset,
        retrain_index=retrain_index,
        seed=derive_seed(config.seed, "sample", point.sample),
        train=train,
        image_size=point_config.image_size,
        point=point.shown,
        sample=point.sample,
    )
    return trial, point_config


def _overlaid(config: SweepConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of one fine-tune: the configuration's own values, overridden by the point's."""
    document = _own_document(config)
    for key in sorted(values, key=lambda key: key.count(".")):
        *parents, last = key.split(".")
        target = document
        for parent in parents:
            child = target.get(parent)
            target[parent] = dict(child) if isinstance(child, dict) else {}
            target = target[parent]
        target[last] = values[key]
    return document


def _own_document(config: SweepConfig) -> dict[str, Any]:
    parts = {key: getattr(config, key).model_dump(mode="json") for key in ("train", "retrain", "base")}
    return {
        "architecture": config.architectures[0],
        "dataset": config.datasets[0],
        "image_size": config.image_size,
        **parts,
    }


def own_values(config: SweepConfig) -> dict[str, Any]:
    """Return what conditions see of the configuration itself, by dotted key."""

    def walk(document: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in document.items():
            yield prefix + key, value
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")

    return dict(walk(_own_document(config), ""))


def _retrain_index(point_config: PointConfig, where: str) -> int | None:
    retrain, num_blocks = point_config.retrain, num_body_blocks(point_config.architecture)
    if retrain.freeze_fraction is not None:
        return round((1 - retrain.freeze_fraction) * num_blocks)
    if retrain.index is not None and retrain.index > num_blocks:
        raise ConfigError(
            f"{where}: retrain.index: expected at most {num_blocks}, the blocks of {point_config.architecture} between "
            f"stem and head, found {retrain.index}"
        )
    return retrain.index


# Sampling


def _order(space: Space) -> tuple[list[str], list[str]]:
    """Return the keys that make up the combinations (grids, and what they depend on), and the others, each in order."""
    needs = {key: {name for entry in entries for name in entry.when if name in space} for key, entries in space.items()}
    ordered: list[str] = []
    while len(ordered) < len(space):
        ready = [key for key in space if key not in ordered and needs[key] <= set(ordered)]
        if not ready:
            circle = ", ".join(key for key in space if key not in ordered)
            raise ConfigError(
                f"space: expected conditions without a circle, found keys that depend on each other: {circle}"
            )
        ordered.append(ready[0])
    structure = {key for key, entries in space.items() if any(entry.grid is not None for entry in entries)}
    for key in reversed(ordered):
        if key in structure:
            structure |= needs[key]
    return [key for key in ordered if key in structure], [key for key in ordered if key not in structure]


def _combinations(
    space: Space, keys: list[str], own: Mapping[str, Any], sample: int, points: Sequence[Point], seed: int
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield every combination of the grids among `keys`; draw what they depend on as it is reached.

    Args:
        points: those made of earlier combinations, whose number each draw depends on.
    """

    def branch(
        index: int, values: dict[str, Any], shown: dict[str, Any]
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        if index == len(keys):
            yield values, shown
            return
        key = keys[index]
        entry = _active_entry(space[key], {**own, **shown}, {**own, **values})
        if entry is None:
            yield from branch(index + 1, values, shown)
            return
        if entry.grid is not None:
            choices = list(entry.options or ())
        else:
            choices = [_seeded_choice(seed, sample, len(points))(key, entry)]
        for choice in choices:
            value, label = _chosen(key, entry, choice)
            yield from branch(index + 1, {**values, key: value}, {**shown, key: label})

    yield from branch(0, {}, {})


def _active_entry(
    entries: tuple[SpaceEntry, ...], shown: Mapping[str, Any], values: Mapping[str, Any]
) -> SpaceEntry | None:
    """Return the first entry whose conditions are met by the values of other keys or by their labels."""

    def is_met(name: str, wanted: Any) -> bool:
        accepted = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        return values.get(name) in accepted or shown.get(name) in accepted

    return next((entry for entry in entries if all(is_met(*condition) for condition in entry.when.items())), None)


def _chosen(key: str, entry: SpaceEntry, choice: Any) -> tuple[Any, Any]:
    """Return the value that was chosen, and how it is shown."""
    if entry.options is not None:
        value = entry.options[choice]
        return value, choice if isinstance(choice, str) else value
    number = round(choice) if _is_whole(key) else float(f"{choice:.{SIGNIFICANT_DIGITS}g}")
    low, high = entry.ends
    number = min(max(number, low), high)
    return number, number


def _seeded_choice(seed: int, sample: int, place: int) -> Choose:
    """Return a choice that depends only on the seed, the position of the point and the key."""

    def choose(key: str, entry: SpaceEntry) -> Any:
        rng = np.random.default_rng(derive_seed(seed, "space", key, sample, place))
        if entry.options is not None:
            return list(entry.options)[rng.integers(len(entry.options))]
        if entry.randint is not None:
            least, most = entry.randint
            return int(rng.integers(least, most + 1))
        low, high = entry.ends
        if entry.loguniform is not None:
            return math.exp(rng.uniform(math.log(low), math.log(high)))
        if entry.truncated_normal is not None:
            mean, deviation = entry.truncated_normal.mean, entry.truncated_normal.deviation
            ends = (low - mean) / deviation, (high - mean) / deviation
            return mean + deviation * float(truncated_normal(*ends, rng.uniform(size=1))[0])
        return rng.uniform(low, high)

    return choose


def _is_whole(key: str) -> bool:
    """Return whether the field that a dotted key names takes only whole numbers."""
    model: Any = PointConfig
    annotation: Any = None
    for part in key.split("."):
        annotation = model.model_fields[part].annotation
        candidates = get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
        model = next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, Config)), None)
    kinds = set(get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)) - {type(None)}
    return kinds == {int}


def _most_points(config: SweepConfig, space: Space) -> int:
    """Return how many points there are if every condition holds."""
    sizes = [
        max((len(entry.options or ()) for entry in entries if entry.grid is not None), default=1)
        for entries in space.values()
    ]
    return config.num_samples * math.prod(sizes)


# Names


def _shown_text(shown: Mapping[str, Any]) -> str:
    words = [f"{key}={value}" for key, value in list(shown.items())[:MAX_SHOWN_VALUES]]
    return ", ".join([*words, *(["…"] if len(shown) > MAX_SHOWN_VALUES else [])]) or "as configured"


def _word(key: str, value: Any) -> str:
    """Return a value as part of a trial's name: words as they are, numbers after their key."""
    name = key.rpartition(".")[2]
    if isinstance(value, str):
        return slug(label(value) if key == "architecture" else value)
    if isinstance(value, bool) or value is None:
        return f"{name}-{str(value).lower()}"
    if isinstance(value, (int, float)):
        return f"{name}{value:g}"
    return name
