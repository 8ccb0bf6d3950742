"""Read a sweep back: which parameters it varied, which trial is best, and the effect of each parameter.

The effect of a parameter is measured on pairs of trials that differ in nothing else, if the space has such pairs.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean, geometric_mean, median
from typing import Any

from raysnap.humanize import score_text
from raysnap.runs.json_fields import mapping, number
from raysnap.runs.questions import short_dataset
from raysnap.runs.run import Run
from raysnap.runs.trial_rows import TrialRow, merit_order

MAX_COMPARED_VALUES = 8
WIDE_RATIO = 50


@dataclass(frozen=True)
class Parameter:
    """What trials differ in: its dotted key, a short label, its values in order, the scale for drawing them.

    Attributes:
        dependents: keys that are sampled only for some of its values.
    """

    key: str
    label: str
    values: tuple[Any, ...]
    is_numeric: bool
    is_log: bool
    dependents: frozenset[str] = frozenset()

    @property
    def is_categorical(self) -> bool:
        """Whether its values are few enough to be shown side by side."""
        return not self.is_numeric or len(self.values) <= MAX_COMPARED_VALUES


@dataclass(frozen=True)
class Comparison:
    """Two values of a parameter compared.

    Attributes:
        better, worse: the values as text; `better` is better on average.
        num_pairs: pairs of finished trials that differ in nothing else; 0 if there are none, and then `gain` compares
            the medians over all trials with each value.
        gain: mean gain over the pairs, in the metric; `least_gain` and `most_gain` are its extremes.
        time_ratio: training time of `better` over that of `worse`, geometric mean; None if not known.
    """

    parameter: Parameter
    better: str
    worse: str
    num_pairs: int
    num_better: int
    num_equal: int
    gain: float
    least_gain: float
    most_gain: float
    time_ratio: float | None


@dataclass(frozen=True)
class Sweep:
    """A run's fine-tunes as a sweep."""

    trials: tuple[TrialRow, ...]
    parameters: tuple[Parameter, ...]
    metric: str
    is_max: bool

    @cached_property
    def ranked(self) -> list[TrialRow]:
        """The trials whose objective is known, finished ones first, best first."""
        known = [trial for trial in self.trials if trial.objective is not None]

        def order(trial: TrialRow) -> tuple[bool, tuple[float, float, str]]:
            merit = merit_order(objective_of(trial), trial.metrics, trial.name, is_max=self.is_max)
            return not trial.is_done, merit

        return sorted(known, key=order)

    @property
    def best(self) -> TrialRow | None:
        """The finished trial with the best objective."""
        return self.ranked[0] if self.ranked and self.ranked[0].is_done else None

    def objective_text(self, value: float) -> str:
        """Format a value of the metric: with three decimals if larger is better, else with four digits."""
        return score_text(value) if self.is_max else f"{value:.4g}"

    @property
    def metric_name(self) -> str:
        """The metric's name in words."""
        return self.metric.replace("_", " ")

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """For each parameter with few values: the best value against each other one."""
        few = [parameter for parameter in self.parameters if 2 <= len(parameter.values) <= MAX_COMPARED_VALUES]
        return list(itertools.chain.from_iterable(_compare(self, parameter) for parameter in few))


def sweep_of(run: Run) -> Sweep | None:
    """Return the run as a sweep; None if it is none."""
    if not run.is_sweep:
        return None
    trials = _with_short_datasets(run.finetunes)
    space = mapping(run.config.get("space"))
    keys = list(dict.fromkeys([*space, *(key for trial in trials for key in trial.point)]))
    metric = run.config.get("metric")
    metric = metric if isinstance(metric, str) else "val_accuracy"
    mode = run.config.get("mode")
    parameters = [_parameter(key, _label(key, keys), trials, space) for key in keys]
    is_max = mode == "max" or (mode != "min" and not metric.endswith("loss"))
    return Sweep(trials, tuple(parameter for parameter in parameters if len(parameter.values) > 1), metric, is_max)


def _with_short_datasets(trials: Sequence[TrialRow]) -> tuple[TrialRow, ...]:
    """Return the trials with the names of the datasets that a space has, without their folders, if these all differ."""
    sampled = {one for trial in trials if isinstance(one := trial.point.get("dataset"), str)}
    names = {one: short_dataset(one) for one in sampled}
    if not names or len(set(names.values())) < len(names):
        return tuple(trials)
    return tuple(
        replace(one, point=one.point | {"dataset": names[one.point["dataset"]]}) if "dataset" in one.point else one
        for one in trials
    )


def objective_of(trial: TrialRow) -> float:
    """Return the objective of a trial for which it is known."""
    if trial.objective is None:
        raise ValueError(f"{trial.name}: its objective is not known")
    return trial.objective


def value_text(value: Any) -> str:
    """Format a sampled value as in YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else "null" if value is None else json.dumps(value)


def point_text(trial: TrialRow, parameters: Sequence[Parameter]) -> str:
    """List the values sampled for a trial, with their labels, in the order of the space."""
    sampled = [parameter for parameter in parameters if parameter.key in trial.point]
    return ", ".join(f"{parameter.label} = {value_text(trial.point[parameter.key])}" for parameter in sampled)


def choice_text(trial: TrialRow, parameters: Sequence[Parameter]) -> str:
    """List the values sampled for a trial, only numbers with their labels; the trial's name if there are none."""
    words = []
    for parameter in parameters:
        if parameter.key in trial.point:
            value = value_text(trial.point[parameter.key])
            words.append(f"{parameter.label} {value}" if parameter.is_numeric else value)
    return ", ".join(words) or trial.name


def training_s(trial: TrialRow) -> float | None:
    """Return the seconds spent on training a trial's model: training, evaluation, cached outputs of frozen blocks."""
    if "train" not in trial.timings_s:
        return None
    return math.fsum(trial.timings_s.get(key, 0.0) for key in ("train", "evaluate", "prefix"))


def _label(key: str, keys: Sequence[str]) -> str:
    """Return the last part of the key; the whole key if another one ends in the same part."""
    last = key.rpartition(".")[2]
    return last if [other.rpartition(".")[2] for other in keys].count(last) == 1 else key


def _entries(entry: Any) -> list[dict[str, Any]]:
    """Return a key's entries of the space: one, or a list of conditional ones."""
    return [mapping(child) for child in (entry if isinstance(entry, list) else [entry])]


def _parameter(key: str, label: str, trials: Iterable[TrialRow], space: dict[str, Any]) -> Parameter:
    by_text = {value_text(trial.point[key]): trial.point[key] for trial in trials if key in trial.point}
    values = list(by_text.values())
    is_numeric = bool(values) and all(number(value) is not None for value in values)
    if is_numeric:
        values.sort()
    is_wide = is_numeric and values[0] > 0 and values[-1] / values[0] >= WIDE_RATIO
    is_log = is_wide or (
        is_numeric and values[0] > 0 and any("loguniform" in entry for entry in _entries(space.get(key)))
    )
    conditions = [(other, mapping(entry.get("when"))) for other in space for entry in _entries(space[other])]
    dependents = {other for other, condition in conditions if key in condition}
    return Parameter(key, label, tuple(values), is_numeric, is_log, frozenset(dependents))


def _compare(sweep: Sweep, parameter: Parameter) -> list[Comparison]:
    """Compare the value with the best median against each other value that finished trials have."""
    trials_of: dict[str, list[TrialRow]] = {value_text(value): [] for value in parameter.values}
    for trial in sweep.ranked:
        if trial.is_done and parameter.key in trial.point:
            trials_of[value_text(trial.point[parameter.key])].append(trial)
    medians = {value: _median(trials) for value, trials in trials_of.items() if trials}
    if len(medians) < 2:
        return []
    best = (max if sweep.is_max else min)(medians, key=lambda value: medians[value])
    return [_compare_values(sweep, parameter, trials_of, best, other) for other in medians if other != best]


def _median(trials: Sequence[TrialRow]) -> float:
    return median(objective_of(trial) for trial in trials)


def _compare_values(
    sweep: Sweep, parameter: Parameter, trials_of: dict[str, list[TrialRow]], first: str, second: str
) -> Comparison:
    """Compare two values; the one that is better on average becomes `better`."""
    sign = 1 if sweep.is_max else -1
    others = {_without(parameter, trial): trial for trial in trials_of[second]}
    pairs = [(trial, others[rest]) for trial in trials_of[first] if (rest := _without(parameter, trial)) in others]
    gains = [sign * (objective_of(one) - objective_of(other)) for one, other in pairs]
    if not pairs:
        gains = [sign * (_median(trials_of[first]) - _median(trials_of[second]))]
    if fmean(gains) < 0:
        return _compare_values(sweep, parameter, trials_of, second, first)
    times_s = [(training_s(one), training_s(other)) for one, other in pairs]
    ratios = [time_s / other_s for time_s, other_s in times_s if time_s and other_s]
    return Comparison(
        parameter,
        first,
        second,
        num_pairs=len(pairs),
        num_better=sum(gain > 0 for gain in gains) if pairs else 0,
        num_equal=sum(gain == 0 for gain in gains) if pairs else 0,
        gain=fmean(gains),
        least_gain=min(gains),
        most_gain=max(gains),
        time_ratio=geometric_mean(ratios) if ratios else None,
    )


def _without(parameter: Parameter, trial: TrialRow) -> str:
    """Return everything about a trial's point except one parameter and what is sampled only because of it."""
    left_out = {parameter.key, *parameter.dependents}
    others = {name: value for name, value in trial.point.items() if name not in left_out}
    return json.dumps([trial.architecture, trial.dataset, trial.sample, others], sort_keys=True)
