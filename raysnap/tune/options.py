"""Options of a Tune run beyond its trials, and the outcome of each trial."""

from __future__ import annotations

from collections.abc import Callable
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
        ended_s: when it ended, on the same clock; set where its row is written later.
    """

    trial: Trial
    savepoint: Savepoint | None
    status: Status
    error: str | None
    started_s: float | None = None
    stopped: str | None = None
    history: tuple[dict[str, Any], ...] = ()
    ended_s: float | None = None


MakeSearcher: TypeAlias = Callable[[list[Trial]], Any]
"""Takes the trials that are waiting; returns a Tune searcher that suggests them, and then others."""


@dataclass(frozen=True)
class TuneOptions:
    """What Tune does other than run every given trial to its end.

    Attributes:
        scheduler: a Tune scheduler; None runs all.
        searcher: makes a Tune searcher that suggests the trials; None runs the given list.
        num_trials: how many trials the searcher suggests.
        time_budget_s: when running trials are stopped and waiting ones skipped, in seconds; None is no limit.
        copies_weights: whether a trial may continue from another's checkpoint instead of its own latest.
    """

    scheduler: Any = None
    searcher: MakeSearcher | None = None
    num_trials: int = 0
    time_budget_s: float | None = None
    copies_weights: bool = False


RUN_ALL = TuneOptions()
