"""What Tune hears of trials, passed on to trackers; one that fails is dropped, so that no trial ends for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.logger import TBXLoggerCallback

from raysnap.errors import describe_failure
from raysnap.tune.trackers import Tracker, figures_of, hyperparameters, kept_of

logger = logging.getLogger(__name__)


class TrackerCallback(TBXLoggerCallback):
    """Tells trackers of each trial; Tune takes it for its TensorBoard logger and so adds none of its own.

    Tune's own names every scalar `ray/tune/…`, among them the clock and counters, puts the seconds and the trial's id
    among the hyperparameters, and says nothing of a trial that failed.
    """

    def __init__(self, trackers: Sequence[Tracker]):
        self._trackers = list(trackers)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def log_trial_start(self, trial: Any) -> None:
        self._tell(lambda tracker: tracker.begin(str(trial), hyperparameters(trial.config["trial"])))

    def log_trial_result(self, iteration: int, trial: Any, result: dict) -> None:  # noqa: ARG002
        if "epoch" in result:
            self._tell(lambda tracker: tracker.measure(str(trial), result["epoch"], figures_of(result)))

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        result = trial.last_result or {}
        kept = kept_of(result)
        epoch = int(result["kept"].get("best_epoch", result.get("epoch", 0))) if kept else result.get("epoch", 0)
        has_failed = failed or bool(result.get("error"))
        self._tell(lambda tracker: tracker.end(str(trial), epoch, kept, has_failed=has_failed))

    def _tell(self, tell: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                tell(tracker)
            except Exception as error:  # noqa: BLE001 - a tracker's server that is down must not end the trials
                self._trackers.remove(tracker)
                logger.warning("%s is told nothing more: %s", type(tracker).__name__, describe_failure(error))
