"""From a savepoint to a snapshot: blocks of any precision stay frozen, and names stay with their snapshots."""

import shutil

import pytest
import torch

from raysnap.config.choices import Status
from raysnap.jobs.collect import collect
from raysnap.models.blocks import random_tensors
from raysnap.runs.trial_rows import TrialRow
from raysnap.store.store import Store
from raysnap.testing.blocks import put
from raysnap.training.savepoints import read_savepoint
from raysnap.training.trial_loop import run_trial
from raysnap.tune.options import TrialOutcome
from tests.support import fault_jobs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a store with a base of float8 and float16 blocks, and how a fine-tune of it ended."""
    directory = tmp_path_factory.mktemp("job")
    store = Store.open(directory / "store", create=True)
    blocks = random_tensors("resnet18", 4, 0)
    for number, (_, tensors) in enumerate(blocks[:-1]):
        dtype = torch.float8_e4m3fn if number % 2 else torch.float16
        tensors |= {name: tensor.to(dtype) for name, tensor in tensors.items() if tensor.is_floating_point()}
    store.put_snapshot(architecture="resnet18", blocks=blocks, num_classes=4, name="base")
    trial = fault_jobs.trial("001-a", fault_jobs.DATASET, epochs=1)
    job = fault_jobs.train_job(directory)

    def report(metrics, checkpoint_dir):
        if "status" in metrics:
            shutil.copytree(checkpoint_dir, directory / "final")

    run_trial(trial, job, torch.device("cpu"), report)
    return store, TrialOutcome(trial, read_savepoint(directory / "final"), Status.DONE, None)


def collected(trained) -> TrialRow:
    store, outcome = trained
    return collect(store, outcome, fault_jobs.PREPROCESSING)


def test_frozen_blocks_keep_the_precision_of_the_base(trained):
    store, outcome = trained
    base, made = store.manifest("base"), store.manifest(collected(trained).snapshot)
    num_frozen = outcome.trial.num_frozen
    assert num_frozen == 8
    assert made.blocks[:num_frozen] == base.blocks[:num_frozen]
    for block in made.blocks[num_frozen:]:
        floats = {tensor.dtype for tensor in store.read_block(block.digest).values() if tensor.is_floating_point()}
        assert floats == {torch.float32}


def test_a_collected_snapshot_leaves_names_to_others(trained):
    store, outcome = trained
    other = put(store, name=outcome.trial.id).manifest.id
    row = collected(trained)
    assert (row.snapshot_name, collected(trained).snapshot_name) == ("001-a-2", "001-a-2")
    assert TrialRow.read(row.as_json()).snapshot_name == "001-a-2"
    assert store.refs() == {"base": store.resolve("base"), "001-a": other, "001-a-2": row.snapshot}


def test_a_free_name_is_the_trials_own(trained):
    store, outcome = trained
    store.remove_snapshot(outcome.trial.id)
    for name in set(store.refs()) - {"base"}:
        store.remove_ref(name)
    row = collected(trained)
    assert row.snapshot_name is None
    assert "snapshot_name" not in row.as_json()
    assert store.resolve("001-a") == row.snapshot
