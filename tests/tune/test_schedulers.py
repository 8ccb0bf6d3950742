"""Tune's queue decides which trial starts; a scheduler only resumes what it paused."""

from types import SimpleNamespace

import pytest
from ray.tune.experiment import Trial

from raysnap.config.sweep import SweepConfig
from raysnap.tune.schedulers import QueueOrder, tune_options

SWEEP = {"datasets": ["pets"], "space": {"train.lr": {"loguniform": [0.01, 0.1]}}, "metric": "val_loss"}


@pytest.mark.parametrize(
    ("statuses", "chosen"),
    [
        ([], None),
        ([Trial.TERMINATED, Trial.RUNNING], None),
        ([Trial.RUNNING, Trial.PENDING], None),
        ([Trial.PAUSED, Trial.PENDING], None),
        ([Trial.RUNNING, Trial.PAUSED, Trial.PAUSED], 1),
    ],
)
def test_a_paused_trial_is_chosen_once_none_waits(statuses, chosen):
    constants = {name: getattr(Trial, name) for name in ("PENDING", "PAUSED")}
    trials = [SimpleNamespace(status=status, **constants) for status in statuses]
    found = QueueOrder().choose_trial_to_run(SimpleNamespace(get_trials=lambda: trials))
    assert found is (None if chosen is None else trials[chosen])


def test_the_median_rule_outlives_a_trial_without_a_metric():
    config = SweepConfig.model_validate(SWEEP | {"scheduler": "median_stopping", "grace_epochs": 1})
    scheduler = tune_options(config, []).scheduler
    controller = SimpleNamespace(get_live_trials=set)

    def report(name: str, epoch: int, loss: float) -> str:
        trial = SimpleNamespace(trial_id=name)
        return scheduler.on_trial_result(controller, trial, {"epoch": epoch, "val_loss": loss, "more": "is not kept"})

    for name in ("a", "b"):
        assert [report(name, epoch, 0.1) for epoch in (1, 2)] == ["CONTINUE", "CONTINUE"]
    diverged = SimpleNamespace(trial_id="diverged")
    assert scheduler.on_trial_result(controller, diverged, {"status": "diverged"}) == "CONTINUE"
    scheduler.on_trial_complete(controller, diverged, {"status": "diverged"})
    assert [report("bad", 1, 9.0), report("good", 1, 0.01)] == ["STOP", "CONTINUE"]
    assert all(set(result) == {"epoch", "val_loss"} for results in scheduler._results.values() for result in results)
