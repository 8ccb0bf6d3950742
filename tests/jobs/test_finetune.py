"""A finetune on a real local Ray: from a store and a folder to a named model, wherever it is killed on the way."""

import json

import pytest

import raysnap.jobs.sweep as sweep_module
import raysnap.search.ranking as ranking_module
from raysnap.config.parts import ShapesConfig
from raysnap.config.sweep import FinetuneConfig
from raysnap.datasets.dataset import open_dataset
from raysnap.errors import ConfigError, SnapshotNotFound, UsageError
from raysnap.jobs.finetune import choose_starts, finetune
from raysnap.report.page import write_report
from raysnap.runs.json_fields import read_rows
from raysnap.runs.run_directory import lock_run
from raysnap.runs.shortlist import SEARCH_NAME, SHORTLIST_NAME, TRAINING_DIR
from raysnap.store.store import Store
from tests.support.search_stores import put, variant

SMALL = "mobilenet_v3_small"
DATA = "shapes-shape-a"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a store of three snapshots, two of which differ in their heads only, and a dataset."""
    folder = tmp_path_factory.mktemp("finetune")
    store = Store.open(folder / "store", create=True)
    base = put(store, "base", variant(SMALL, 0, 0), SMALL)
    for seed, name, retrain_index in ((1, "twin", 0), (2, "other", 2)):
        put(store, name, variant(SMALL, seed, retrain_index), SMALL, base=base, retrain_index=retrain_index)
    open_dataset(DATA, folder / "data", ShapesConfig(image_size=36, num_train=32, num_val=16, num_test=16))
    return folder


def job(place, run: str, **more) -> FinetuneConfig:
    settings = {
        "dataset": DATA,
        "store": place / "store",
        "data_dir": place / "data",
        "run_dir": place / run,
        "train": {"epochs": 2, "batch_size": 16},
        "space": {"retrain.index": {"grid": [0, 1]}},
        "search": {"feature_cache_bytes": 0},
        "resources": {"max_concurrent": 1},
    }
    return FinetuneConfig.model_validate(settings | more)


def rows_of(config: FinetuneConfig) -> dict[str, dict]:
    rows = read_rows(config.run_dir / TRAINING_DIR / "results.jsonl")
    names = [row["trial"] for row in rows]
    assert len(names) == len(set(names)), "nothing is trained twice"
    return {row["trial"]: row for row in rows}


@pytest.fixture(scope="module")
def finished(ray_local, place):
    config = job(place, "run")
    return config, finetune(config)


def test_every_distinct_start_is_fine_tuned_by_every_recipe(finished):
    config, summary = finished
    assert [start.rank for start in summary.starts] == sorted(start.rank for start in summary.starts)
    assert len(summary.starts) == 2, "snapshots that differ in their heads only are one start"
    assert {start.num_trials for start in summary.starts} == {2} and len(rows_of(config)) == 4
    assert all(start.low <= start.score <= start.high and start.num_scored >= 16 for start in summary.starts)


def test_a_base_is_among_the_starts(finished):
    _, summary = finished
    assert [start.is_base for start in summary.starts] == [start.name in ("base", "twin") for start in summary.starts]
    assert any(start.is_base for start in summary.starts)


def test_the_best_is_in_the_store_under_the_datasets_name(finished):
    config, summary = finished
    store = Store.open(config.store)
    manifest = store.manifest(f"{DATA}-finetuned")
    rows = rows_of(config)
    best = max(rows.values(), key=lambda row: (row["status"] == "done", row["objective"]))
    assert manifest.id == summary.best["snapshot"] and manifest.metrics == rows[summary.best["trial"]]["metrics"]
    assert rows[summary.best["trial"]]["objective"] == best["objective"]
    assert manifest.base in {start.snapshot for start in summary.starts}
    assert store.verify()["ok"]


def test_every_fine_tune_is_a_record_with_what_the_search_said(finished):
    config, summary = finished
    records = list(Store.open(config.store).records())
    said = {start.snapshot: (start.rank, start.score) for start in summary.starts}
    ours = [record for record in records if record.searched]
    assert len(ours) == 4 and all(record.dataset.name == DATA for record in ours)
    assert all((one.searched.rank, one.searched.score) == said[one.start.snapshot] for one in ours)
    assert all(one.searched.expected_loss == summary.expected_loss for one in ours)


def test_the_report_shows_what_was_predicted_beside_what_came(finished):
    config, summary = finished
    page = write_report(config.run_dir).read_text()
    assert "What was predicted, and what came" in page and "of the test images of" in page
    assert f"stored as <b class='name'>{summary.best['name']}</b>" in page
    assert f"predict --model {summary.best['name']} " in page
    assert "How long each search method takes" not in page, "it has one"
    tables = config.run_dir / "report_tables" / "starts.csv"
    assert len(tables.read_text().splitlines()) == 1 + len(summary.starts)


def test_a_finished_finetune_is_resumed_without_training(finished):
    config, summary = finished
    before = rows_of(config)
    with pytest.raises(ConfigError, match="add --resume"):
        finetune(config)
    again = finetune(config, resume=True)
    assert again.best == summary.best and again.starts == summary.starts and rows_of(config) == before


class Killed(Exception):
    """What stands for kill -9: nothing is cleaned up after it."""


def test_killed_in_search_between_training_and_store_and_resumed(ray_local, place, monkeypatch):
    config = job(place, "killed", shortlist=1, name="phoenix")

    def die(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ranking_module, "search", die)
        with pytest.raises(Killed):
            finetune(config)
    assert not (config.run_dir / SHORTLIST_NAME).exists()
    before = len(list(Store.open(config.store).records()))
    with monkeypatch.context() as patch:
        patch.setattr(sweep_module._SweepRecorder, "record_best", die)
        with pytest.raises(Killed):
            finetune(config, resume=True)
    chosen = json.loads((config.run_dir / SHORTLIST_NAME).read_text())
    assert len(rows_of(config)) == 1, "the best one waits in its checkpoint"
    summary = finetune(config, resume=True)
    assert json.loads((config.run_dir / SHORTLIST_NAME).read_text()) == chosen
    assert len(rows_of(config)) == 2 and all(len(row["history"]) <= 2 for row in rows_of(config).values())
    assert summary.best["name"] == "phoenix"
    assert len(list(Store.open(config.store).records())) == before + 2, "one record for each fine-tune"


def test_a_run_that_died_in_its_search_begins_again(place, monkeypatch):
    def die(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ranking_module, "search", die)
        with pytest.raises(Killed):
            finetune(job(place, "begun"))
    changed = job(place, "begun", shortlist=1)
    with lock_run(changed, changed.run_dir, resume=False) as lock:
        assert len(choose_starts(changed, resume=False, lock=lock).starts) == 1
    with pytest.raises(ConfigError, match="add --resume"), lock_run(changed, changed.run_dir, resume=False):
        pass


def test_named_starts_need_no_search(ray_local, place):
    config = job(place, "named", starts=["other"], space={"retrain.index": {"grid": [0]}}, train={"epochs": 1})
    summary = finetune(config)
    assert [(start.name, start.rank, start.num_trials) for start in summary.starts] == [("other", None, 1)]
    assert not (config.run_dir / SEARCH_NAME).exists() and summary.best["start"] == "other"
    assert "no search predicted anything" in write_report(config.run_dir).read_text()


def test_what_can_not_be_done_is_refused_before_training(place):
    with pytest.raises(SnapshotNotFound, match="'missing'"):
        finetune(job(place, "a", starts=["missing"]))
    with pytest.raises(UsageError, match="time budget: expected more than"):
        finetune(job(place, "b", starts=["base"], time_budget_s=1))
