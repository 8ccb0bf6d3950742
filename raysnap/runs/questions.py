"""Group timed searches into repeats of a method on a question, and the questions that several methods answered.

A question is everything that was asked except the method: dataset, proxy, and the axes of a benchmark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath
from statistics import median_low, quantiles
from typing import Any

from raysnap.humanize import bytes_text, count_text, plural
from raysnap.runs.search_rows import AXES, SearchRow

# The method whose ranking is shown is the first of these: those that score every candidate on every item come first.
REFERENCE_ORDER = ("baseline", "shared", "nested", "shift", "alsatian")
NOISY_SPREAD = 0.10


@dataclass(frozen=True)
class MethodRuns:
    """The finished repeats of one method on one question."""

    method: str
    searches: tuple[SearchRow, ...]

    @property
    def totals_s(self) -> list[float]:
        """The time of each repeat."""
        return [search.total_s for search in self.searches if search.total_s is not None]

    @cached_property
    def median_run(self) -> SearchRow:
        """The repeat with the (lower) median time, so that its phases add up to its total."""
        return next(search for search in self.searches if search.total_s == self.median_s)

    @property
    def median_s(self) -> float:
        """The (lower) median of the times."""
        return median_low(self.totals_s)

    @property
    def spread(self) -> float | None:
        """The interquartile range of the times divided by their median; None with fewer than two times."""
        if len(self.searches) < 2 or not self.median_s:
            return None
        low, _, high = quantiles(self.totals_s, n=4, method="inclusive")
        return (high - low) / self.median_s

    @property
    def noise(self) -> tuple[str, ...]:
        """Why the times are noisy: their spread, and what each run recorded."""
        reasons = [reason for search in self.searches for reason in search.noise]
        if self.spread is not None and self.spread > NOISY_SPREAD:
            reasons.insert(0, f"the middle half of its runs spans {self.spread * 100:.0f} % of the median")
        return tuple(dict.fromkeys(reasons))

    @property
    def is_noisy(self) -> bool:
        """Whether there is a reason to distrust the times."""
        return bool(self.noise)


@dataclass(frozen=True)
class Question:
    """What was asked, and the methods that answered it, slowest first; no two of a run have the same `title`."""

    dataset: str
    proxy: str
    methods: tuple[MethodRuns, ...]
    setting: dict[str, Any] = field(default_factory=dict)
    title: str = ""

    def method(self, name: str) -> MethodRuns | None:
        """Return the runs of one method; None where it did not run."""
        return next((runs for runs in self.methods if runs.method == name), None)

    @property
    def reference(self) -> MethodRuns:
        """The method whose ranking is shown."""
        known = [self.method(name) for name in REFERENCE_ORDER]
        return next((runs for runs in known if runs), self.methods[0])

    @property
    def slowest(self) -> MethodRuns:
        """What speed-ups are measured against: `baseline`, or the slowest where it was not run."""
        return self.method("baseline") or self.methods[0]

    @property
    def fastest(self) -> MethodRuns:
        """The method with the smallest median."""
        return self.methods[-1]

    @property
    def candidates(self) -> frozenset[str]:
        """The ids of the ranked snapshots."""
        return frozenset(line.snapshot for line in self.reference.median_run.ranking)

    def speed_up(self, runs: MethodRuns) -> float:
        """Return how many times faster a method is than what speed-ups are measured against."""
        return self.slowest.median_s / runs.median_s if runs.median_s > 0 else math.nan


def short_dataset(dataset: str | None) -> str:
    """Return a dataset's name; of a path, its last part."""
    return (PurePath(dataset).name or dataset) if dataset else "no dataset"


def gain_text(gain: Mapping[str, float]) -> str:
    """Say what the first scores beside the choice without a search, which was just named, and how sure that is."""
    compared = f"{abs(gain['value']):.3f} {'less' if gain['value'] < 0 else 'more'} than that one"
    doubt = "; that may be luck" if gain["low"] <= 0 <= gain["high"] else ""
    on_items = f"on the same {plural(round(gain['num_scored']), 'item')}"
    return f"The first scores {compared} ({gain['low']:+.3f} to {gain['high']:+.3f}), {on_items}{doubt}"


def questions_of(searches: Iterable[SearchRow]) -> tuple[Question, ...]:
    """Group the finished searches by question, and within it by method."""
    asked: dict[tuple[str, str, tuple[tuple[str, Any], ...]], dict[str, list[SearchRow]]] = {}
    for search in searches:
        if search.is_done:
            key = (search.dataset, search.proxy, search.setting)
            asked.setdefault(key, {}).setdefault(search.method, []).append(search)
    settings = [{"dataset": dataset, "proxy": proxy, **dict(setting)} for dataset, proxy, setting in asked]
    varying = [key for key in ("proxy", *AXES) if len({repr(setting.get(key)) for setting in settings}) > 1]
    questions = []
    for (dataset, proxy, _), setting, by_method in zip(asked, settings, asked.values(), strict=True):
        methods = [MethodRuns(method, tuple(runs)) for method, runs in by_method.items()]
        ordered = tuple(sorted(methods, key=lambda runs: -runs.median_s))
        title = ", ".join([short_dataset(dataset), *(axis_text(key, setting.get(key)) for key in varying)])
        questions.append(Question(dataset, proxy, ordered, setting, title))
    return tuple(questions)


def axis_text(axis: str, value: Any) -> str:
    """Return one axis of a benchmark and its value as text for people."""
    if axis == "budget_bytes":
        return "no limit" if value is None else f"{bytes_text(value)} of activations"
    if axis in ("num_train", "num_test"):
        return f"{'all' if value is None else count_text(value)} {AXES[axis]}"
    if axis in ("image_size", "io_limit_mib_per_s"):
        return f"{'any' if value is None else f'{value:g}'} {AXES[axis]}"
    name = AXES.get(axis, "")
    if value is None:
        return f"no {name or axis}"
    return f"{name} {PurePath(value).name if axis == 'store' else value}".strip().replace("_", " ")
