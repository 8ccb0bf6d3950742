"""Options of a Tune run beyond its trials, and the outcome of each trial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from raysnap.config.choices import Status
from raysnap.training.savepoints import Savepoint
from raysnap.training.trial import Trial


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial ended: with a savepoint to collect, or with an error and its kind.

    Attributes:
        trial: as it ended; `pbt` changes what a trial trains with.
        started_s: when Tune started it, on `time.monotonic`; None where an earlier driver started it.
        stopped: why one with the status `stopped` ended early: `scheduler` or `time_budget`.
        history: the epochs that were reported to this driver.
        gpu_share: the share of a GPU that it had; None where it had none or several.
        gpu_peak_bytes: the most of a GPU's memory that it took; None where nothing measured it.
        gpu_bytes: all memory of that GPU.
        gpu_forecast_bytes: what was forecast in place of `gpu_peak_bytes`.
        ended_s: when it ended, on the same clock; set where its row is written later.
    """

    trial: Trial
    savepoint: Savepoint | None
    status: Status
    error: str | None
    started_s: float | None = None
    stopped: str | None = None
    history: tuple[dict[str, Any], ...] = ()
    gpu_share: float | None = None
    gpu_peak_bytes: int | None = None
    gpu_bytes: int | None = None
    gpu_forecast_bytes: int | None = None
    ended_s: float | None = None


@dataclass(frozen=True)
class MeasuredTrial:
    """A trial that ended earlier, and the most that it took of a GPU's memory."""

    trial: Trial
    peak_bytes: int
    gpu_bytes: int


@dataclass(frozen=True)
class Suggestions:
    """Trials that follow from the results of others.

    Attributes:
        metric: what is told of each trial.
        suggest: returns the next trial; None when there is none.
        tell: takes a trial's id and its metric, None where it has none.
    """

    metric: str
    suggest: Callable[[], Trial | None]
    tell: Callable[[str, float | None], None]


MakeSuggestions: TypeAlias = Callable[[], Suggestions]
"""Makes the source of further trials when the first is needed; it knows the results of earlier runs."""


@dataclass(frozen=True)
class TuneOptions:
    """What Tune does other than run every given trial to its end.

    Attributes:
        scheduler: a Tune scheduler; None runs all.
        suggestions: makes what suggests further trials after the given list; None runs only the list.
        num_trials: how many trials run, listed and suggested ones together.
        time_budget_s: when running trials are stopped and waiting ones skipped, in seconds; None is no limit.
        measured: trials that ended before, by which GPUs are packed from the start.
        copies_weights: whether a trial may continue from another's checkpoint instead of its own latest.
    """

    scheduler: Any = None
    suggestions: MakeSuggestions | None = None
    num_trials: int = 0
    time_budget_s: float | None = None
    measured: Sequence[MeasuredTrial] = ()
    copies_weights: bool = False


RUN_ALL = TuneOptions()
