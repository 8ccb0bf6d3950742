"""Passes trials on from Tune to trackers; a tracker that fails is dropped, so that no trial fails because of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.logger import LoggerCallback

from raysnap.errors import describe_failure
from raysnap.tune.trackers import Tracker, figures_of, hyperparameters, kept_of

logger = logging.getLogger(__name__)


class TrackerCallback(LoggerCallback):
    """Passes each trial on to trackers, in place of Tune's own loggers.

    Tune's TensorBoard logger names every scalar `ray/tune/…`, clock and counters included, puts the seconds and the
    trial's id among the hyperparameters, and does not show that a trial failed.
    """

    def __init__(self, trackers: Sequence[Tracker]):
        self._trackers = list(trackers)
        self._started: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def log_trial_start(self, trial: Any) -> None:
        self._started.add(str(trial))
        self._call(lambda tracker: tracker.start(str(trial), hyperparameters(trial.config["trial"])))

    def log_trial_result(self, iteration: int, trial: Any, result: dict) -> None:  # noqa: ARG002
        if "epoch" in result:
            self._call(lambda tracker: tracker.measure(str(trial), result["epoch"], figures_of(result)))

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        if str(trial) not in self._started:
            return  # its process died before it started
        self._started.remove(str(trial))
        result = trial.last_result or {}
        kept = kept_of(result)
        epoch = int(result["kept"].get("best_epoch", result.get("epoch", 0))) if kept else result.get("epoch", 0)
        has_failed = failed or bool(result.get("error"))
        self._call(lambda tracker: tracker.end(str(trial), epoch, kept, has_failed=has_failed))

    def _call(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except Exception as error:  # noqa: BLE001 - a tracker's server that is down must not end the trials
                self._trackers.remove(tracker)
                logger.warning(
                    "%s failed and gets no further records: %s", type(tracker).__name__, describe_failure(error)
                )
