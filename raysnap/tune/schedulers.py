"""What Tune is told of a sweep: which trials go on, and who chooses the next."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from ray import tune
from ray.tune import schedulers
from ray.tune.search import Searcher

from raysnap.config.load import SweepConfig
from raysnap.config.space_entry import SpaceEntry
from raysnap.planning.sampling import Trial
from raysnap.training.trial_loop import SAVED_EPOCH
from raysnap.tune.run_trials import MakeSearcher, Steering

TIME = "epoch"


def steer(config: SweepConfig, trials: list[Trial], searcher: MakeSearcher | None = None) -> Steering:
    """What Tune does in a sweep of these trials, or of `num_samples` that a searcher makes."""
    return Steering(
        scheduler=_scheduler(config, max((trial.train.epochs for trial in trials), default=config.train.epochs)),
        searcher=searcher,
        num_trials=len(trials) if searcher is None else config.num_samples,
        time_budget_s=config.time_budget_s,
        breeds=config.scheduler == "pbt",
    )


def _scheduler(config: SweepConfig, max_epochs: int) -> Any:
    compared = {"metric": config.metric, "mode": config.mode}
    match config.scheduler:
        case "fifo":
            return None
        case "asha":
            return schedulers.ASHAScheduler(
                time_attr=TIME,
                max_t=max(max_epochs, config.grace_epochs),
                grace_period=config.grace_epochs,
                reduction_factor=config.reduction_factor,
                **compared,
            )
        case "median_stopping":
            return schedulers.MedianStoppingRule(
                time_attr=TIME, grace_period=config.grace_epochs, min_samples_required=2, **compared
            )
        case "pbt":
            return schedulers.PopulationBasedTraining(
                time_attr=SAVED_EPOCH,
                perturbation_interval=config.perturb_epochs,
                hyperparam_mutations=_mutations(config),
                custom_explore_fn=_within_bounds(config),
                synch=True,  # so that a seed says all, not which trial happens to be ahead
                log_config=False,
                require_attrs=False,  # a trial that ends says nothing to breed from
                **compared,
            )


def _mutations(config: SweepConfig) -> dict[str, Any]:
    """What pbt may do to each value: move it along a list, or scale it and now and then draw it anew."""
    train = {key.removeprefix("train."): _domain(entries[0]) for key, entries in config.space.items()}
    return {"trial": {"train": train}}


def _domain(entry: SpaceEntry) -> Any:
    if entry.options is not None:
        return list(entry.options.values())
    low, high = entry.bounds
    return tune.loguniform(low, high) if entry.loguniform is not None else tune.uniform(low, high)


def _within_bounds(config: SweepConfig) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Scaled values are put back between the bounds that the space gives them."""
    bounds = {key.removeprefix("train."): entries[0].bounds for key, entries in config.space.items()}

    def explore(perturbed: dict[str, Any]) -> dict[str, Any]:
        train = perturbed["trial"]["train"]
        for key, ends in bounds.items():
            if ends is not None:
                train[key] = min(max(train[key], ends[0]), ends[1])
        return perturbed

    return explore


@contextmanager
def seeded_chance(seed: int) -> Iterator[None]:
    """Python's and numpy's own generators begin at a seed meanwhile, as Tune's pbt draws from them."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


class Asking(Searcher):
    """Makes a sweep's trials one by one, from what somebody who is told all results suggests.

    Args:
        waiting: trials that were suggested before and have not ended; they come first.
        suggest: makes the next trial; None when there is none.
        tell: takes a trial's id and what its metric came to, None where it came to nothing.
    """

    def __init__(
        self,
        metric: str,
        mode: str,
        waiting: list[Trial],
        suggest: Callable[[], Trial | None],
        tell: Callable[[str, float | None], None],
    ):
        super().__init__(metric=metric, mode=mode)
        self._waiting = list(waiting)
        self._suggest = suggest
        self._tell = tell
        self._ids: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next trial as Tune takes it."""
        trial = self._waiting.pop(0) if self._waiting else self._suggest()
        if trial is None:
            return Searcher.FINISHED
        self._ids[trial_id] = trial.id
        return {"trial": trial.model_dump(mode="json")}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Passes on what became of a trial."""
        value = None if error or not result or result.get("error") else result.get(self.metric)
        self._tell(self._ids[trial_id], value)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a sweep that goes on knows all from its rows."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, for the same reason."""
