"""A fine-tune in a process that may take little more memory than it has: `fault_memory.py DIRECTORY`; prints JSON."""

import json
import resource
import sys
from pathlib import Path

import torch

from raysnap.errors import OutOfMemory
from raysnap.jobs.bases import store_base
from raysnap.store.store import Store
from raysnap.training import trial_loop as training
from raysnap.training.savepoints import Savepoint
from raysnap.training.trial import Trial
from raysnap.tune.driver import retry_with_half_batch
from tests.support import fault_jobs

SPARE_BYTES = 64 * 2**20  # gradients, optimizer state and the kept copy of what is trained take twice as much


def run(directory: Path) -> dict:
    """Return the batch sizes that were tried, and the reason why the last one failed."""
    store = Store.open(directory / "store", create=True)
    store.set_ref("base", store_base(store, "random", "resnet18", 4, 0, fault_jobs.PREPROCESSING))
    job = fault_jobs.train_job(directory)
    trial = fault_jobs.trial("limited").model_copy(update={"retrain_index": 2})
    tried: list[int] = []
    start_model = training._start_model

    def start_model_in_little_memory(*args: object) -> object:
        started = start_model(*args)
        num_pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = num_pages * resource.getpagesize() + SPARE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        return started

    def launch(trial: Trial, resume: Savepoint | None) -> None:
        tried.append(trial.train.batch_size)
        try:
            training.run_trial(trial, job, torch.device("cpu"), lambda *_: None, resume=resume)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    training._start_model = start_model_in_little_memory
    try:
        retry_with_half_batch(trial, None, launch)
    except OutOfMemory as error:
        return {"tried": tried, "error": str(error)}
    return {"tried": tried, "error": None}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(Path(sys.argv[1]))) + "\n")
