"""Tune's schedulers of a sweep: which trials are stopped early, and which copy the weights of others."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from ray import tune
from ray.tune import schedulers

from raysnap.config.space_entry import SpaceEntry
from raysnap.config.sweep import SweepConfig
from raysnap.training.trial import Trial
from raysnap.training.trial_loop import SAVED_EPOCH
from raysnap.tune.options import MakeSuggestions, TuneOptions

TIME = "epoch"


class QueueOrder(schedulers.FIFOScheduler):
    """Starts trials in the order of Tune's queue, each in the process that was requested for it.

    Tune's own schedulers always name the first trial that waits, and Tune gives it the process of whichever trial ends
    next: its own process, which was still starting, is thrown away, and no second process ever comes to work.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Name a paused trial where none waits; Tune starts those that wait by itself."""
        trials = tune_controller.get_trials()
        if any(trial.status == trial.PENDING for trial in trials):
            return None
        return next((trial for trial in trials if trial.status == trial.PAUSED), None)


class _Asha(QueueOrder, schedulers.ASHAScheduler):
    """Tune's ASHA in the order of the queue."""


class _TrialName(NamedTuple):
    """What the median stopping rule needs of one of Tune's trials."""

    trial_id: str


class _MedianStopping(QueueOrder, schedulers.MedianStoppingRule):
    """Tune's median stopping rule in the order of the queue, which keeps of each trial only what it compares.

    Tune's own keeps whole trials and results, and fails once a trial ended with a result without a time, as one that
    diverged does.
    """

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        """Decide whether the trial goes on."""
        compared = self._compared(result)
        if compared is None:
            return schedulers.TrialScheduler.CONTINUE
        return super().on_trial_result(tune_controller, _TrialName(trial.trial_id), compared)  # type: ignore[arg-type]

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict) -> None:
        """Take the last result, unless there is nothing in it to compare."""
        compared = self._compared(result)
        if compared is not None:
            super().on_trial_complete(tune_controller, _TrialName(trial.trial_id), compared)  # type: ignore[arg-type]

    def _compared(self, result: dict) -> dict[str, Any] | None:
        keys = (self._time_attr, str(self._metric))
        return {key: result[key] for key in keys} if all(key in result for key in keys) else None


def tune_options(config: SweepConfig, trials: list[Trial], suggestions: MakeSuggestions | None = None) -> TuneOptions:
    """Return Tune's options for a sweep of these trials, or of `num_samples` with suggested ones."""
    return TuneOptions(
        scheduler=_scheduler(config, max((trial.train.epochs for trial in trials), default=config.train.epochs)),
        suggestions=suggestions,
        num_trials=len(trials) if suggestions is None else config.num_samples,
        time_budget_s=config.time_budget_s,
        copies_weights=config.scheduler == "pbt",
    )


def _scheduler(config: SweepConfig, max_epochs: int) -> Any:
    match config.scheduler:
        case "fifo":
            return QueueOrder()
        case "asha":
            return _Asha(
                time_attr=TIME,
                max_t=max(max_epochs, config.grace_epochs),
                grace_period=config.grace_epochs,
                reduction_factor=config.reduction_factor,
                metric=config.metric,
                mode=config.mode,
            )
        case "median_stopping":
            return _MedianStopping(
                time_attr=TIME,
                grace_period=config.grace_epochs,
                min_samples_required=2,
                metric=config.metric,
                mode=config.mode,
            )
        case "pbt":
            return schedulers.PopulationBasedTraining(
                time_attr=SAVED_EPOCH,
                perturbation_interval=config.perturb_epochs,
                hyperparam_mutations=_mutations(config),
                custom_explore_fn=_within_bounds(config),
                synch=True,  # so that results follow from the seed, not from which trial is ahead
                log_config=False,
                require_attrs=False,  # a trial's last report has no savepoint
                metric=config.metric,
                mode=config.mode,
            )


def _mutations(config: SweepConfig) -> dict[str, Any]:
    """Return how pbt may change each value: move it along a list, or scale it and sometimes redraw it."""
    train = {key.removeprefix("train."): _domain(entries[0]) for key, entries in config.space.items()}
    return {"trial": {"train": train}}


def _domain(entry: SpaceEntry) -> Any:
    if entry.options is not None:
        return list(entry.options.values())
    low, high = entry.ends
    return tune.loguniform(low, high) if entry.loguniform is not None else tune.uniform(low, high)


def _within_bounds(config: SweepConfig) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function that clips scaled values to the bounds of the space."""
    bounds = {key.removeprefix("train."): entries[0].bounds for key, entries in config.space.items()}

    def explore(perturbed: dict[str, Any]) -> dict[str, Any]:
        train = perturbed["trial"]["train"]
        for key, ends in bounds.items():
            if ends is not None:
                train[key] = min(max(train[key], ends[0]), ends[1])
        return perturbed

    return explore


@contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """Seed Python's and numpy's global generators within the context, as Tune's pbt draws from them."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
