"""Trials on a node that doesn't see the job's folders fail there at once, and soon end the job."""

import os

import pytest
import ray

from raysnap.cluster.places import marked
from raysnap.config.parts import ResourcesConfig
from raysnap.errors import ClusterError
from raysnap.training.trial_loop import TrainJob
from raysnap.tune.options import TrialOutcome
from raysnap.tune.run_trials import MAX_MISPLACED, run_trials
from tests.support import fault_jobs

DEEP = os.environ.get("RAYSNAP_DEEP") == "1"
JOB = {"bases": {}, "preprocessing": fault_jobs.PREPROCESSING, "seed": 0}
COUNTS = dict.fromkeys(("num_train", "num_val", "num_test"))


@pytest.mark.parametrize("num_workers", [0, *([1] if DEEP else [])])
def test_a_node_that_fails_every_trial_ends_the_job(ray_local, tmp_path, num_workers):
    with marked(tmp_path / "run" / "ray") as mark:
        pass  # as if it were elsewhere
    outcomes: list[TrialOutcome] = []
    trials = [fault_jobs.trial(f"trial-{number}") for number in range(2 * MAX_MISPLACED)]
    address = ray.util.get_node_ip_address()
    message = (
        f"{MAX_MISPLACED} trials ended where they can't run: run_dir {tmp_path}/run: node .* \\({address}\\) doesn't"
    )
    with pytest.raises(ClusterError, match=message):
        run_trials(
            trials,
            TrainJob(store_dir=tmp_path, dataset_dirs={}, mark=mark, **JOB, **COUNTS),
            ResourcesConfig(num_workers=num_workers, cpus=1, gpus=0),
            tmp_path / "run" / "ray" / "trials",
            on_end=outcomes.append,
            on_epoch=lambda *_: None,
        )
    assert MAX_MISPLACED <= len(outcomes) < len(trials)
    assert {outcome.status for outcome in outcomes} == {"failed"}
    assert all("doesn't see what the driver writes there" in outcome.error for outcome in outcomes)
