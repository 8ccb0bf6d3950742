"""A run directory read back: its trials, its timed searches, its environment, and what they add up to.

Rows are read leniently: a field that is missing or no number is unknown, never an error, since a report must
also stand for a run that went wrong. Only a run directory without any row is refused.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median_low, quantiles
from typing import Any

from raysnap.config import read_yaml
from raysnap.errors import ConfigError, DataError, UsageError
from raysnap.quantities import plural
from raysnap.runs import read_rows
from raysnap.svg import clean

logger = logging.getLogger(__name__)

PHASES = ("plan", "load_blocks", "decode", "inference", "proxy")
# Whose ranking is shown: those that score every candidate on every item come first.
REFERENCE_ORDER = ("baseline", "shared", "nested", "shift", "alsatian")
NOISY_SPREAD = 0.10


@dataclass(frozen=True)
class Trial:
    """One row of a `generate` run; what the row does not say is `None`."""

    name: str
    role: str
    status: str
    error: str | None
    architecture: str
    dataset: str | None
    retrain_index: int | None
    num_blocks: int | None
    num_classes: int | None
    snapshot: str | None
    val_accuracy: float | None
    test_accuracy: float | None
    curve: tuple[tuple[float, float], ...]
    train_s: float | None
    total_s: float | None
    wall_s: float | None
    overhead_s: float | None
    num_trained_parameters: float | None
    num_parameters: float | None
    new_bytes: float | None
    snapshot_bytes: float | None

    @property
    def is_done(self) -> bool:
        """Whether the trial left a snapshot."""
        return self.status == "done"


@dataclass(frozen=True)
class RankedSnapshot:
    """One line of a search's ranking."""

    rank: int
    snapshot: str
    name: str
    score: float | None
    num_train: int | None
    num_test: int | None
    is_tied: bool


@dataclass(frozen=True)
class Search:
    """One timed search: one row of a `bench` run."""

    cell: str
    repeat: int
    status: str
    error: str | None
    method: str
    proxy: str
    dataset: str
    num_candidates: int
    ranking: tuple[RankedSnapshot, ...]
    phases_s: dict[str, float]
    total_s: float | None
    work: dict[str, float]
    peak_activation_bytes: float | None
    skipped: tuple[tuple[str, str], ...]

    @property
    def is_done(self) -> bool:
        """Whether the search finished and was timed."""
        return self.status == "done" and self.total_s is not None

    @property
    def scores(self) -> dict[str, float]:
        """The score of each snapshot that got one."""
        return {one.snapshot: one.score for one in self.ranking if one.score is not None}


@dataclass(frozen=True)
class MethodRuns:
    """The finished repeats of one method on one question."""

    method: str
    searches: tuple[Search, ...]

    @property
    def totals_s(self) -> list[float]:
        """The time of each repeat."""
        return [search.total_s for search in self.searches]

    @cached_property
    def median_run(self) -> Search:
        """The repeat with the (lower) median time, so that its phases add up to its total."""
        middle = median_low(self.totals_s)
        return next(search for search in self.searches if search.total_s == middle)

    @property
    def median_s(self) -> float:
        """The (lower) median of the times."""
        return self.median_run.total_s

    @property
    def is_noisy(self) -> bool:
        """Whether the inter-quartile range of the times passes 10 % of their median."""
        if len(self.searches) < 2:
            return False
        low, _, high = quantiles(self.totals_s, n=4, method="inclusive")
        return high - low > NOISY_SPREAD * self.median_s


@dataclass(frozen=True)
class Question:
    """One dataset asked about with one proxy: the methods that answered it, slowest first."""

    dataset: str
    proxy: str
    methods: tuple[MethodRuns, ...]

    def method(self, name: str) -> MethodRuns | None:
        """The runs of one method; None where it did not run."""
        return next((one for one in self.methods if one.method == name), None)

    @property
    def reference(self) -> MethodRuns:
        """The method whose ranking is shown."""
        known = [self.method(name) for name in REFERENCE_ORDER]
        return next((one for one in known if one), self.methods[0])

    @property
    def slowest(self) -> MethodRuns:
        """What speed-ups are measured against: `baseline`, or the slowest where it was not run."""
        return self.method("baseline") or self.methods[0]

    @property
    def fastest(self) -> MethodRuns:
        """The method with the smallest median."""
        return self.methods[-1]

    def speed_up(self, one: MethodRuns) -> float:
        """How many times faster a method is than what speed-ups are measured against."""
        return self.slowest.median_s / one.median_s if one.median_s > 0 else math.nan


@dataclass(frozen=True)
class Run:
    """Everything a run directory says."""

    name: str
    run_dir: Path
    config: dict[str, Any]
    config_text: str
    env: dict[str, Any]
    trials: tuple[Trial, ...]
    num_unfinished: int
    searches: tuple[Search, ...]
    remarks: tuple[str, ...] = ()
    bench_config_text: str = ""
    trial_of: dict[str, Trial] = field(default_factory=dict)

    @property
    def done_trials(self) -> list[Trial]:
        """The trials that left a snapshot, bases too."""
        return [trial for trial in self.trials if trial.is_done]

    @property
    def finetunes(self) -> list[Trial]:
        """The trials that started from a base."""
        return [trial for trial in self.trials if trial.role != "base"]

    @property
    def timed_trials(self) -> list[Trial]:
        """The fine-tunes that went from start to end in one run, so that their wall time is known."""
        return [trial for trial in self.finetunes if trial.wall_s and trial.overhead_s is not None]

    @property
    def training_share(self) -> float | None:
        """Time in training over the wall time of the fine-tunes, starts of actors left out; None without any."""
        wall_s = math.fsum(trial.wall_s for trial in self.timed_trials)
        return 1 - math.fsum(trial.overhead_s for trial in self.timed_trials) / wall_s if wall_s else None

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """What the finished searches were asked, each with the methods that answered."""
        return _questions(self.searches)


def read_run(run_dir: Path) -> Run:
    """What `run_dir`, and the `bench` folder nested in it, hold.

    Raises:
        UsageError: there is no such folder.
        DataError: it holds no results, or results that can't be read.
    """
    if not run_dir.is_dir():
        found = "a file" if run_dir.exists() else "nothing there"
        raise UsageError(f"{run_dir}: expected a run directory, found {found}")
    parts = [part for part in (run_dir, run_dir / "bench") if (part / "results.jsonl").is_file()]
    if not parts:
        raise DataError(f"{run_dir}: expected a run directory with results.jsonl in it, found none; run the job first")
    remarks: list[str] = []
    rows = [row for part in parts for row in _read_rows(part / "results.jsonl", remarks)]
    trials = tuple({trial.name: trial for trial in map(_trial, _rows_with(rows, "trial"))}.values())
    searches = {(one.cell, one.repeat): one for one in map(_search, _rows_with(rows, "method"))}
    planned = _read_rows(run_dir / "trials.jsonl", remarks) if (run_dir / "trials.jsonl").is_file() else []
    unfinished = {str(row.get("id", row.get("trial"))) for row in planned} - {trial.name for trial in trials}
    unfinished -= {one.cell for one in searches.values()}
    if not trials and not searches and not unfinished:
        raise DataError(f"{run_dir}/results.jsonl: expected a row per trial or search, found none; run the job first")
    config, config_text = _read_config(parts[0])
    return Run(
        name=clean(run_dir.resolve().name),
        run_dir=run_dir,
        config=config,
        config_text=config_text,
        env=_read_env(parts, remarks),
        trials=trials,
        num_unfinished=len(unfinished),
        searches=tuple(searches.values()),
        remarks=tuple(remarks),
        bench_config_text=_read_config(parts[1])[1] if len(parts) > 1 else "",
        trial_of={trial.snapshot: trial for trial in trials if trial.snapshot},
    )


def _questions(searches: Iterable[Search]) -> tuple[Question, ...]:
    by_question: dict[tuple[str, str], dict[str, list[Search]]] = {}
    for search in searches:
        if search.is_done:
            by_question.setdefault((search.dataset, search.proxy), {}).setdefault(search.method, []).append(search)
    questions = []
    for (dataset, proxy), by_method in by_question.items():
        methods = [MethodRuns(method, tuple(runs)) for method, runs in by_method.items()]
        questions.append(Question(dataset, proxy, tuple(sorted(methods, key=lambda one: -one.median_s))))
    return tuple(questions)


def _rows_with(rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return [row for row in rows if row.get(key) is not None]


def _read_rows(path: Path, remarks: list[str]) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; what a crash tore is left out with a remark."""
    try:
        rows = read_rows(path)
        num_lines = sum(bool(line.strip()) for line in path.read_bytes().splitlines())
    except (OSError, RecursionError) as error:
        raise DataError(f"{path}: expected a file of JSON lines, found one that can't be read: {error}") from None
    if num_lines > len(rows):
        torn = plural(num_lines - len(rows), "line")
        remarks.append(f"{torn} of {path.name} can't be read, perhaps cut off by a crash, and left out.")
    return [_cleaned(row) for row in rows]


def _read_config(part: Path) -> tuple[dict[str, Any], str]:
    try:
        config = read_yaml(part / "config.yaml")
    except ConfigError as error:
        logger.warning("the report goes without the configuration: %s", error)
        return {}, ""
    return _cleaned(config), clean((part / "config.yaml").read_text("utf-8"))


def _read_env(parts: list[Path], remarks: list[str]) -> dict[str, Any]:
    """The environment of the run; what a nested part adds is kept under `bench`."""
    found = []
    for part in parts:
        try:
            env = json.loads((part / "env.json").read_text("utf-8"))
        except FileNotFoundError:
            env = {}
        except (OSError, ValueError) as error:
            remarks.append(f"env.json is unreadable and left out: {clean(str(error))}")
            env = {}
        found.append(_cleaned(env) if isinstance(env, dict) else {})
    return found[0] | ({"bench": found[1]} if len(found) > 1 else {})


def _cleaned(value: Any) -> Any:
    """The JSON value with all text fit for UTF-8 and XML."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(key)): _cleaned(child) for key, child in value.items()}
    return [_cleaned(child) for child in value] if isinstance(value, list) else value


def _trial(row: dict[str, Any]) -> Trial:
    metrics, timings_s = mapping(row.get("metrics")), mapping(row.get("timings_s"))
    epochs = [mapping(epoch) for epoch in sequence(row.get("history"))]
    curve = [(number(epoch.get("epoch")), number(epoch.get("val_accuracy"))) for epoch in epochs]
    return Trial(
        name=str(row["trial"]),
        role=_text(row.get("role")) or "finetune",
        status=_text(row.get("status")) or "unknown",
        error=_text(row.get("error")),
        architecture=_text(row.get("architecture")) or "unknown",
        dataset=_text(row.get("dataset")),
        retrain_index=_whole(row.get("retrain_index")),
        num_blocks=_whole(row.get("num_blocks")),
        num_classes=_whole(row.get("num_classes")),
        snapshot=_text(row.get("snapshot")),
        val_accuracy=number(metrics.get("val_accuracy")),
        test_accuracy=number(metrics.get("test_accuracy")),
        curve=tuple(sorted((x, y) for x, y in curve if x is not None and y is not None)),
        train_s=number(timings_s.get("train")),
        total_s=number(timings_s.get("total")),
        wall_s=number(row.get("wall_s")),
        overhead_s=number(row.get("overhead_s")),
        num_trained_parameters=number(row.get("num_trained_parameters")),
        num_parameters=number(row.get("num_parameters")),
        new_bytes=number(row.get("new_bytes")),
        snapshot_bytes=number(row.get("snapshot_bytes")),
    )


def _search(row: dict[str, Any]) -> Search:
    search = mapping(row.get("search"))
    timings_s = mapping(search.get("timings_s"))
    phases_s = {phase: max(0.0, number(timings_s.get(phase)) or 0.0) for phase in PHASES}
    total_s = number(timings_s.get("total"))
    phases_s["rest"] = max(0.0, (total_s or 0.0) - math.fsum(phases_s.values()))
    work = {key: number(value) for key, value in mapping(search.get("work")).items()}
    return Search(
        cell=_text(row.get("cell")) or "",
        repeat=_whole(row.get("repeat")) or 0,
        status=_text(row.get("status")) or "unknown",
        error=_text(row.get("error")),
        method=str(row["method"]),
        proxy=_text(row.get("proxy")) or "unknown",
        dataset=_text(row.get("dataset")) or "unknown",
        num_candidates=_whole(search.get("num_candidates")) or 0,
        ranking=tuple(_ranked(mapping(one), rank) for rank, one in enumerate(sequence(search.get("ranking")), start=1)),
        phases_s=phases_s,
        total_s=total_s,
        work={key: value for key, value in work.items() if value is not None},
        peak_activation_bytes=number(search.get("peak_activation_bytes")),
        skipped=tuple(
            (str(one.get("snapshot")), str(one.get("error"))) for one in map(mapping, sequence(search.get("skipped")))
        ),
    )


def _ranked(row: dict[str, Any], position: int) -> RankedSnapshot:
    snapshot = _text(row.get("snapshot")) or f"candidate {position}"
    return RankedSnapshot(
        rank=_whole(row.get("rank")) or position,
        snapshot=snapshot,
        name=_text(row.get("name")) or snapshot[:12],
        score=number(row.get("score")),
        num_train=_whole(row.get("num_train")),
        num_test=_whole(row.get("num_test")),
        is_tied=row.get("tied_with_best") is True,
    )


def number(value: Any) -> float | None:
    """The value where it is a finite number, else `None`."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        return float(value) if is_number and math.isfinite(value) else None
    except OverflowError:
        return None


def mapping(value: Any) -> dict[str, Any]:
    """The value where it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def sequence(value: Any) -> list[Any]:
    """The value where it is a JSON array, else an empty one."""
    return value if isinstance(value, list) else []


def _whole(value: Any) -> int | None:
    found = number(value)
    return int(found) if found is not None else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
