"""What a job remembers of its fine-tunes: those that ended well, each once, with where their starts come from."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from raysnap.config.choices import Role, Status
from raysnap.config.train import TrainConfig
from raysnap.jobs.data import JobData
from raysnap.jobs.memory import Memory
from raysnap.runs.trial_rows import TrialRow
from raysnap.store.records import SearchedFrom
from raysnap.store.store import Store
from raysnap.training.trial import Trial
from tests.support.search_stores import put, variant

SMALL = "mobilenet_v3_small"
SEARCHED = SearchedFrom(method="shared", proxy="linear", rank=1, num_candidates=3, score=0.5, num_train=8, num_test=8)


@pytest.fixture
def memory(tmp_path) -> Memory:
    store = Store.open(tmp_path / "store", create=True)
    root = put(store, "root", variant(SMALL, 0, 0), SMALL)
    start = put(store, "start", variant(SMALL, 1, 1), SMALL, base=root)
    job = SimpleNamespace(store=store, config=SimpleNamespace(image_size=32))
    dataset = SimpleNamespace(
        name="pets", fingerprint="digest of pets", classes=("cat", "dog"), root=Path("pets"), kind="images"
    )
    data = JobData({"pets": dataset}, {"pets": {"train": 8, "val": 4}})
    return Memory(job, data, {"start": start, "drawn": None}, {start: SEARCHED})


def trial(base: str = "start", **more) -> Trial:
    facts = {"id": "001", "role": Role.FINETUNE, "architecture": SMALL, "dataset": "pets", "retrain_index": 1}
    return Trial.model_validate(facts | {"seed": 3, "train": TrainConfig(epochs=2), "base": base} | more)


def row(status: Status = Status.DONE, **more) -> TrialRow:
    metrics = {"metrics": {"val_accuracy": 0.75}, "history": [{"epoch": 1}], "batch_size": 16}
    return TrialRow.read({"trial": "001", "role": "finetune", "status": status} | metrics | more)


def test_a_fine_tune_that_ended_is_one_record(memory):
    for _ in range(2):
        memory.keep(trial(), row())
    [record] = memory.job.store.records()
    ids = memory.job.store.refs()
    assert (record.start.snapshot, record.start.lineage) == (ids["start"], (ids["root"],))
    assert (record.dataset.digest, record.dataset.num_train, record.dataset.num_test) == ("digest of pets", 8, 0)
    assert (record.recipe.retrain_index, record.recipe.image_size, record.recipe.train["batch_size"]) == (1, 32, 16)
    assert (record.num_epochs, record.is_stopped, record.metrics) == (1, False, {"val_accuracy": 0.75})
    assert record.searched == SEARCHED


def test_one_that_the_scheduler_stopped_is_a_record(memory):
    memory.keep(trial(), row(Status.STOPPED, stopped="scheduler"))
    assert [record.is_stopped for record in memory.job.store.records()] == [True]


@pytest.mark.parametrize(
    ("changed", "ended"),
    [
        ({"base": "drawn"}, {}),
        ({"base": "unknown"}, {}),
        ({"role": Role.BASE}, {}),
        ({}, {"status": Status.FAILED}),
        ({}, {"status": Status.STOPPED, "stopped": "time_budget"}),
        ({}, {"metrics": {}}),
    ],
)
def test_what_says_nothing_of_a_start_is_no_record(memory, changed, ended):
    memory.keep(trial(**changed), row(**ended))
    assert list(memory.job.store.records()) == []


def test_the_record_of_a_kept_model_is_found(memory):
    fine_tune = trial()
    used = fine_tune.train.model_dump(mode="json") | {"batch_size": 16}
    memory.keep(fine_tune, row())
    made = put(
        memory.job.store, "made", variant(SMALL, 5, 1), SMALL, base=memory.bases["start"], retrain_index=1, train=used,
        metrics={"val_accuracy": 0.75},
    )  # fmt: skip
    store = memory.job.store
    assert store.record_of(store.manifest(made)).searched == SEARCHED
    assert store.record_of(store.manifest("start")) is None and store.record_of(store.manifest("root")) is None
