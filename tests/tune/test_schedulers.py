"""Tune's queue decides which trial starts; a scheduler only resumes what it paused."""

from types import SimpleNamespace

import pytest
from ray.tune.experiment import Trial

from raysnap.tune.schedulers import QueueOrder


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
