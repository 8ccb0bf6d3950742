"""What Tune is told besides its trials, and what it returns for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raysnap.config.choices import Status
from raysnap.training.savepoints import Savepoint
from raysnap.training.trial import Trial


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial ended: with a savepoint to collect, or with an error and its kind.

    Attributes:
        trial: as it ended: `pbt` changes what a trial trains with.
        started_s: when Tune started it, on `time.monotonic`; None where another driver saw it start.
        stopped: what ended it before its time, of one that is `stopped`: `scheduler` or `time_budget`.
        history: the epochs that this driver saw of it.
        ended_s: when it ended, on the same clock, where its row is written later.
    """

    trial: Trial
    savepoint: Savepoint | None
    status: Status
    error: str | None
    started_s: float | None = None
    stopped: str | None = None
    history: tuple[dict[str, Any], ...] = ()
    ended_s: float | None = None


MakeSearcher = Callable[[list[Trial]], Any]


@dataclass(frozen=True)
class TuneOptions:
    """What Tune does besides running every trial that it is given to its end.

    Attributes:
        scheduler: a Tune scheduler; None runs all.
        searcher: makes a Tune searcher in place of a list of trials; None where the list is all.
        num_trials: how many the searcher makes.
        time_budget_s: after so many seconds what runs is stopped and what waits is left; None is no limit.
        copies_weights: whether a trial may go on with another's checkpoint, in place of its own newest.
    """

    scheduler: Any = None
    searcher: MakeSearcher | None = None
    num_trials: int = 0
    time_budget_s: float | None = None
    copies_weights: bool = False


RUN_ALL = TuneOptions()
