"""Trials that need memory of four pretended GPUs: `packing_runs.py DIRECTORY GPUS`; GPUS is a number or `packed`.

A trial's dataset is named `EXTRA-LATER`: the megabytes that its process takes in addition to what every process takes,
from its start and from its third epoch. Each lasts some twenty seconds, most of which it sleeps. Prints JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import cloudpickle

from raysnap.config.parts import ResourcesConfig
from raysnap.jobs.bases import store_base
from raysnap.store.store import Store
from raysnap.training.trial import Trial
from raysnap.tune.options import TrialOutcome
from raysnap.tune.run_trials import run_trials
from tests.support import fault_jobs

GPU_BYTES = 4_800_000_000
NUM_GPUS, NUM_CPUS = 4, 16
EPOCH_S, NUM_EPOCHS = 5.0, 4

KINDS = {"0-0": 16, "500-500": 10, "1900-1900": 3, "0-600": 6}  # name, and how many trials of it there are
BATCH_SIZES = {"0-0": 16, "500-500": 8, "1900-1900": 4, "0-600": 32}  # one each, so that each is a kind of its own
HELD: list[np.ndarray] = []


class HungryDirs(dict):
    """The folder of one dataset, under the names of what its trials need."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def __getitem__(self, name: str) -> Path:
        extra, later = map(int, name.split("-"))
        hold(extra)
        step, num_steps = getattr(torch.optim.Adam.step, "plain", torch.optim.Adam.step), 0
        steps_per_epoch = fault_jobs.SHAPES.num_train // BATCH_SIZES[name]

        def slow_step(*args: Any, **options: Any) -> Any:
            nonlocal num_steps
            num_steps += 1
            time.sleep(EPOCH_S / steps_per_epoch)
            if num_steps == 2 * steps_per_epoch + 1:
                hold(later)
            if num_steps == NUM_EPOCHS * steps_per_epoch:
                HELD.clear()
            return step(*args, **options)

        slow_step.plain = step
        torch.optim.Adam.step = slow_step
        return self.folder

    def __reduce__(self) -> Any:
        return HungryDirs, (self.folder,)


def hold(megabytes: int) -> None:
    """Hold so much memory, and nothing else."""
    HELD.clear()
    HELD.append(np.ones(megabytes * 1_000_000, dtype=np.uint8))


def run(directory: Path, gpus: str) -> dict[str, Any]:
    """Run all trials; return the seconds, and how each ended, with which share and on its which start."""
    os.environ |= {"RAYSNAP_PRETEND_GPUS": "1", "RAYSNAP_PRETEND_GPU_BYTES": str(GPU_BYTES)}
    ray.init(
        address="local",
        num_cpus=NUM_CPUS,
        num_gpus=NUM_GPUS,
        include_dashboard=False,
        object_store_memory=100_000_000,
    )
    store = Store.open(directory / "store", create=True)
    store.set_ref("base", store_base(store, "random", "resnet18", 4, 0, fault_jobs.PREPROCESSING))
    job = fault_jobs.train_job(directory)
    job = type(job)(**(vars(job) | {"dataset_dirs": HungryDirs(job.dataset_dirs.folder)}))
    trials: list[Trial] = []
    left = dict(KINDS)
    while any(left.values()):  # all kinds mixed
        for name in [name for name, number in left.items() if number]:
            left[name] -= 1
            train = {"batch_size": BATCH_SIZES[name], "epochs": NUM_EPOCHS, "checkpoint_every": None}
            trials.append(fault_jobs.trial(f"{len(trials):03d}-{name}", name, **train))
    ended: dict[str, Any] = {}

    def on_end(outcome: TrialOutcome) -> None:
        assert outcome.trial.id not in ended
        ended[outcome.trial.id] = [outcome.status.value, outcome.gpu_share, outcome.gpu_peak_bytes, outcome.error]

    resources = {"pack_gpus": True} if gpus == "packed" else {"gpus": float(gpus)}
    started_s = time.monotonic()
    run_trials(
        trials,
        job,
        ResourcesConfig(max_failures=0, **resources),
        directory / "ray" / "trials",
        on_end=on_end,
        on_epoch=lambda *_: None,
    )
    seconds = time.monotonic() - started_s
    ray.shutdown()
    return {"seconds": seconds, "planned": [trial.id for trial in trials], "ended": ended}


# Ray's workers do not find this module; what they need of it travels with the job.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

if __name__ == "__main__":
    result = run(Path(sys.argv[1]), sys.argv[2])
    sys.stdout.write("\n" + json.dumps(result) + "\n")
