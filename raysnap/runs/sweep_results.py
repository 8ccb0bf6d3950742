"""A sweep read back: which parameters it varied, which trial is the best, and what each parameter is worth.

What a parameter is worth is told from trials that differ in nothing else, as far as the space has such pairs.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median
from typing import Any

from raysnap.humanize import score_text
from raysnap.runs.json_fields import mapping, number
from raysnap.runs.run import Run
from raysnap.runs.trial_rows import TrialRow

MAX_COMPARED_VALUES = 8
WIDE_RATIO = 50


@dataclass(frozen=True)
class Parameter:
    """What trials differ in: its dotted key, a short name, its values in order, the scale they are drawn on.

    Attributes:
        dependents: the keys that are sampled only for some of its values.
    """

    key: str
    label: str
    values: tuple[Any, ...]
    is_numeric: bool
    is_log: bool
    dependents: frozenset[str] = frozenset()

    @property
    def is_categorical(self) -> bool:
        """Whether its values are few enough to stand side by side."""
        return not self.is_numeric or len(self.values) <= MAX_COMPARED_VALUES


@dataclass(frozen=True)
class Comparison:
    """One value of a parameter against another.

    Attributes:
        num_pairs: pairs of finished trials that differ in nothing else; 0 where there are none, and the figures are
            of the medians over all trials with each value.
        gain: how much better the first is on average over the pairs, in the metric; least_gain and most_gain bound it.
        time_ratio: its training time over the other's, geometric mean; None where it is not known.
    """

    parameter: Parameter
    better: Any
    worse: Any
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
        sign = -1 if self.is_max else 1
        return sorted(known, key=lambda trial: (not trial.is_done, sign * trial.objective, trial.name))

    @property
    def best(self) -> TrialRow | None:
        """The finished trial with the best objective."""
        return self.ranked[0] if self.ranked and self.ranked[0].is_done else None

    def objective_text(self, value: float) -> str:
        """A value of the metric: accuracies with three decimals, others with four figures."""
        return score_text(value) if self.is_max else f"{value:.4g}"

    @property
    def metric_name(self) -> str:
        """The metric as people say it."""
        return self.metric.replace("_", " ")

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Of each parameter with few values: the best one against each other."""
        found = [_compare(self, one) for one in self.parameters if 2 <= len(one.values) <= MAX_COMPARED_VALUES]
        return list(itertools.chain.from_iterable(found))


def sweep_of(run: Run) -> Sweep | None:
    """The run as a sweep; None where it is none."""
    if not run.is_sweep:
        return None
    trials = tuple(trial for trial in run.finetunes)
    space = mapping(run.config.get("space"))
    keys = list(dict.fromkeys([*space, *(key for trial in trials for key in trial.point)]))
    metric = run.config.get("metric")
    metric = metric if isinstance(metric, str) else "val_accuracy"
    mode = run.config.get("mode")
    parameters = [_parameter(key, _label(key, keys), trials, space) for key in keys]
    is_max = mode == "max" or (mode != "min" and not metric.endswith("loss"))
    return Sweep(trials, tuple(one for one in parameters if len(one.values) > 1), metric, is_max)


def value_text(value: Any) -> str:
    """A sampled value as people write it in YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else "null" if value is None else json.dumps(value)


def point_text(trial: TrialRow, parameters: Sequence[Parameter]) -> str:
    """What the sweep chose for a trial, in the order of the space."""
    return ", ".join(
        f"{one.label} = {value_text(trial.point[one.key])}" for one in parameters if one.key in trial.point
    )


def choice_text(trial: TrialRow, parameters: Sequence[Parameter]) -> str:
    """The values alone that the sweep chose for a trial; numbers with their names."""
    told = [one for one in parameters if one.key in trial.point]
    words = [
        f"{one.label} {value_text(trial.point[one.key])}" if one.is_numeric else value_text(trial.point[one.key])
        for one in told
    ]
    return ", ".join(words) or trial.name


def training_s(trial: TrialRow) -> float | None:
    """Seconds spent on training a trial's model: epochs, their evaluation, and the cached outputs it used."""
    parts = [trial.timings_s.get(key) for key in ("train", "evaluate", "prefix")]
    return math.fsum(part for part in parts if part is not None) if parts[0] is not None else None


def _label(key: str, keys: Sequence[str]) -> str:
    """The last part of the key; the whole one where another ends in the same."""
    last = key.rpartition(".")[2]
    return last if [other.rpartition(".")[2] for other in keys].count(last) == 1 else key


def _entries(entry: Any) -> list[dict[str, Any]]:
    """A key's entry of the space, as the list that it may be."""
    return [mapping(one) for one in (entry if isinstance(entry, list) else [entry])]


def _parameter(key: str, label: str, trials: Iterable[TrialRow], space: dict[str, Any]) -> Parameter:
    by_text = {value_text(trial.point[key]): trial.point[key] for trial in trials if key in trial.point}
    values = list(by_text.values())
    is_numeric = bool(values) and all(number(value) is not None for value in values)
    if is_numeric:
        values.sort()
    is_wide = is_numeric and values[0] > 0 and values[-1] / values[0] >= WIDE_RATIO
    is_log = is_wide or (is_numeric and values[0] > 0 and any("loguniform" in one for one in _entries(space.get(key))))
    dependents = {other for other, entry in space.items() for one in _entries(entry) if key in mapping(one.get("when"))}
    return Parameter(key, label, tuple(values), is_numeric, is_log, frozenset(dependents))


def _compare(sweep: Sweep, parameter: Parameter) -> list[Comparison]:
    key = parameter.key
    done = [trial for trial in sweep.ranked if trial.is_done and key in trial.point]
    by_value = {value_text(value): [] for value in parameter.values}
    for trial in done:
        by_value[value_text(trial.point[key])].append(trial)
    present = {value: trials for value, trials in by_value.items() if trials}
    if len(present) < 2:
        return []
    sign = 1 if sweep.is_max else -1
    middle = {value: median(sign * trial.objective for trial in trials) for value, trials in present.items()}
    best = max(middle, key=lambda value: middle[value])
    return [_against(sweep, parameter, present, best, other, sign) for other in present if other != best]


def _against(
    sweep: Sweep, parameter: Parameter, trials_of: dict[str, list[TrialRow]], first: str, second: str, sign: int
) -> Comparison:
    """The pair's comparison, put so that the one that is better on average comes first."""
    others = {_rest(trial, parameter): trial for trial in trials_of[second]}
    pairs = [(trial, others[rest]) for trial in trials_of[first] if (rest := _rest(trial, parameter)) in others]
    gains = [sign * (one.objective - other.objective) for one, other in pairs]
    ratios = [training_s(one) / training_s(other) for one, other in pairs if training_s(one) and training_s(other)]
    if not pairs:
        middles = [median(trial.objective for trial in trials_of[value]) for value in (first, second)]
        gains = [sign * (middles[0] - middles[1])]
    if fmean(gains) < 0:
        return _against(sweep, parameter, trials_of, second, first, sign)
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
        time_ratio=math.exp(fmean(math.log(ratio) for ratio in ratios)) if ratios else None,
    )


def _rest(trial: TrialRow, parameter: Parameter) -> str:
    """Everything about a trial's point but one parameter and what is sampled only because of it."""
    left_out = {parameter.key, *parameter.dependents}
    others = {name: value for name, value in trial.point.items() if name not in left_out}
    return json.dumps([trial.architecture, trial.dataset, trial.sample, others], sort_keys=True)
