"""Sweeps on a real local Ray: one row per trial, the best in the store, early stopping that leaks nothing, resuming."""

import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
import ray
from sklearn.metrics import accuracy_score, f1_score

import raysnap.jobs.sweep as module
from raysnap.config.load import find_config, load_config
from raysnap.config.sweep import SweepConfig
from raysnap.jobs.sweep import sweep
from raysnap.report.page import write_report
from raysnap.runs.json_fields import read_rows
from raysnap.runs.trial_rows import TrialRow
from raysnap.store.store import Store
from raysnap.tune.schedulers import seeded_generators

TIMES = ("timings_s", "wall_s", "overhead_s", "finished", "new_blocks", "new_bytes")


def job(directory: Path, space: dict, **changes) -> SweepConfig:
    settings = {
        "run_dir": directory / "run",
        "store": directory / "store",
        "data_dir": directory / "data",
        "datasets": ["shapes-shape-a"],
        "image_size": 32,
        "shapes": {"image_size": 36, "num_train": 32, "num_val": 16, "num_test": 16},
        "train": {"epochs": 1, "batch_size": 16},
        "retrain": {"index": 0},
        "space": space,
        "resources": {"max_concurrent": 1},  # a second process takes longer to start than all trials take
    }
    return SweepConfig.model_validate(settings | changes)


def run(config: SweepConfig, resume: bool = False):
    stages = {}
    summary = sweep(config, resume=resume, on_progress=lambda stage, done, of, _: stages.update({stage: (done, of)}))
    assert all(done <= of for done, of in stages.values())
    return summary


def rows_of(config: SweepConfig) -> dict[str, dict]:
    """Return the rows of the fine-tunes by their numbers; each trial has exactly one."""
    rows = read_rows(config.run_dir / "results.jsonl")
    names = [row["trial"] for row in rows]
    assert len(names) == len(set(names)), "one row per trial"
    return {row["trial"][:3]: row for row in rows if row["role"] != "base"}


def wait_for_resources(total: dict[str, float], available: dict[str, float]) -> None:
    """Wait until the cluster has the resources again that it had; Ray takes a moment to count them."""
    deadline = time.monotonic() + 60
    expected = (total, {name: available.get(name) for name in ("CPU", "memory")})
    while (found := (ray.cluster_resources(), {name: ray.available_resources().get(name) for name in expected[1]})) != (
        expected
    ):
        assert time.monotonic() < deadline, f"expected {expected}, found {found}"
        time.sleep(0.2)


# A sweep, whole


@pytest.fixture(scope="module")
def finished(ray_local, tmp_path_factory):
    space = {
        "train.optimizer": {"grid": ["adam", "sgd"]},
        "train.lr": [
            {"when": {"train.optimizer": "sgd"}, "grid": [0.01, 100]},
            {"when": {"train.optimizer": "adam"}, "grid": {"usual": 1e-3, "tiny": 1e-6}},
        ],
        "train.epochs": {"when": {"train.lr": 100}, "grid": [30]},
    }
    config = job(tmp_path_factory.mktemp("sweep"), space, retrain={}, resources={"max_concurrent": 1})
    return config, run(config)


def test_every_trial_is_one_row_whatever_became_of_it(finished):
    config, summary = finished
    rows = rows_of(config)
    assert {number: row["status"] for number, row in rows.items()} == {
        "001": "done",
        "002": "done",
        "003": "done",
        "004": "diverged",
    }
    assert (summary.num_trials, summary.num_done, summary.num_failed, summary.num_left) == (4, 3, 1, 0)
    assert "smaller train.lr than 100" in summary.failures[0]["error"]
    planned = [row["id"] for row in read_rows(config.run_dir / "trials.jsonl") if row["role"] != "base"]
    assert planned == sorted(row["trial"] for row in rows.values())
    assert rows["002"]["point"] == {"train.optimizer": "adam", "train.lr": "tiny"}
    assert rows["004"]["point"] == {"train.optimizer": "sgd", "train.lr": 100, "train.epochs": 30}


def test_only_the_best_is_stored_with_metrics_and_lineage(finished):
    config, summary = finished
    rows = rows_of(config)
    done = [row for row in rows.values() if row["status"] == "done"]
    best = max(done, key=lambda row: (row["objective"], -int(row["trial"][:3])))
    assert summary.best["trial"] == best["trial"]
    assert [row["trial"] for row in done if row["snapshot"]] == [best["trial"]]
    store = Store.open(config.store)
    manifest = store.manifest(best["trial"])
    assert manifest.id == best["snapshot"] == summary.best["snapshot"]
    assert manifest.metrics == best["metrics"]
    assert manifest.train["lr"] == best["train"]["lr"]
    assert manifest.base == best["base"] == store.manifest("resnet18-random-" + str(seed_of_base(config))).id
    assert len(store.manifests()) == 2
    assert store.verify()["ok"]


def seed_of_base(config: SweepConfig) -> int:
    return next(row["seed"] for row in read_rows(config.run_dir / "trials.jsonl") if row["role"] == "base")


def test_predictions_of_the_best_say_what_its_metrics_say(finished):
    config, summary = finished
    row = rows_of(config)[summary.best["trial"][:3]]
    kept = json.loads((config.run_dir / row["predictions"]).read_text())
    assert len(kept["paths"]) == len(kept["labels"]) == len(kept["predicted"]) == len(kept["confidence"]) == 16
    for path, label in zip(kept["paths"], kept["labels"], strict=True):
        assert (Path(kept["root"]) / path).is_file()
        assert path.split("/")[:2] == ["test", kept["classes"][label]]
    assert accuracy_score(kept["labels"], kept["predicted"]) == pytest.approx(row["metrics"]["test_accuracy"])
    f1 = f1_score(kept["labels"], kept["predicted"], average="macro")
    assert f1 == pytest.approx(row["metrics"]["test_macro_f1"])
    assert [path.name for path in (config.run_dir / "predictions").iterdir()] == [f"{row['trial']}.json"]


def test_nothing_is_left_of_checkpoints_and_the_report_stands(finished):
    config, _ = finished
    assert not list((config.run_dir / "ray").rglob("*.safetensors"))
    assert "<html" in write_report(config.run_dir).read_text()


def test_resuming_retries_only_what_failed(finished):
    config, summary = finished
    before = (config.run_dir / "results.jsonl").read_text()
    again = run(config, resume=True)
    after = (config.run_dir / "results.jsonl").read_text()
    assert after.startswith(before)
    assert [json.loads(line)["trial"] for line in after[len(before) :].splitlines()] == [summary.failures[0]["trial"]]
    assert (again.best, again.num_done) == (summary.best, 3)
    (config.run_dir / "results.jsonl").write_text(before)


def test_what_a_killed_driver_left_is_finished_and_the_best_kept(ray_local, tmp_path):
    """A driver that dies has not written the row of the best so far; only its checkpoint is there."""
    config = job(tmp_path, {"train.lr": {"grid": [1e-3, 1e-6]}}, resources={"max_concurrent": 1})

    class Killed(Exception):
        pass

    def die(keeper):
        raise Killed

    finish, module._SweepRecorder.record_best = module._SweepRecorder.record_best, die
    try:
        with pytest.raises(Killed):
            run(config)
    finally:
        module._SweepRecorder.record_best = finish
    assert len(rows_of(config)) == 1
    summary = run(config, resume=True)
    rows = rows_of(config)
    assert len(rows) == 2
    assert all(len(row["history"]) == 1 for row in rows.values()), "nothing was trained again"
    best = max(rows.values(), key=lambda row: (row["objective"], -int(row["trial"][:3])))
    assert summary.best["trial"] == best["trial"]


# Early stopping


@pytest.fixture(scope="module")
def asha(ray_local, tmp_path_factory):
    """Run a sweep that ASHA stops trials of; return it with the resources of the cluster before it."""
    before = ray.cluster_resources(), ray.available_resources()
    config = job(
        tmp_path_factory.mktemp("asha"),
        {
            "train.lr": {"grid": {"good": 3e-3, "wild": 100, "tiny": 1e-8, "tinier": 1e-9, "tiniest": 1e-10}},
            "retrain.index": {"when": {"train.lr": "wild"}, "grid": [8]},
            "train.optimizer": {"when": {"train.lr": "wild"}, "grid": ["sgd"]},
            "train.weight_decay": {"when": {"train.lr": "wild"}, "grid": [10]},
        },
        scheduler="asha",
        reduction_factor=2,
        metric="val_loss",
        train={"epochs": 4, "batch_size": 16},
        resources={"max_concurrent": 1},
    )
    return config, run(config), before


def test_asha_stops_bad_trials_at_their_best_epoch_so_far(asha):
    config, summary, _ = asha
    rows = rows_of(config)
    assert (rows["001"]["status"], len(rows["001"]["history"])) == ("done", 4)
    assert rows["002"]["status"] == "diverged", "a trial without a metric does not disturb the others"
    stopped = [row for row in rows.values() if row["status"] == "stopped"]
    assert len(stopped) == summary.num_stopped >= 2
    for row in stopped:
        assert (row["stopped"], row["error"], row["snapshot"]) == ("scheduler", None, None)
        assert 1 <= len(row["history"]) < 4
        assert row["objective"] == row["metrics"]["val_loss"] == min(one["val_loss"] for one in row["history"])
    assert summary.best["trial"] == rows["001"]["trial"]


def test_stopped_trials_leak_no_resources(asha):
    _, _, before = asha
    wait_for_resources(*before)
    assert not ray.util.placement_group_table() or all(
        group["state"] == "REMOVED" for group in ray.util.placement_group_table().values()
    )


def test_a_resumed_sweep_leaves_stopped_trials_as_they_are(asha):
    config, _, _ = asha
    before = (config.run_dir / "results.jsonl").read_text()
    run(config, resume=True)
    added = (config.run_dir / "results.jsonl").read_text().removeprefix(before)
    assert [json.loads(line)["status"] for line in added.splitlines()] == ["diverged"], "what was stopped stays so"
    (config.run_dir / "results.jsonl").write_text(before)


def test_pbt_copies_good_weights_and_perturbs_rates(ray_local, tmp_path):
    config = job(
        tmp_path,
        {"train.lr": {"loguniform": [1e-9, 1e-2]}},
        num_samples=4,
        scheduler="pbt",
        perturb_epochs=1,
        metric="val_loss",
        train={"epochs": 3, "batch_size": 16, "schedule": "cosine"},
        keep="all",
        resources={},  # a population steps on together
    )
    run(config)
    rows = rows_of(config)
    assert [row["status"] for row in rows.values()] == ["done"] * 4
    assert {len(row["history"]) for row in rows.values()} == {3}
    heirs = [row for row in rows.values() if row["inherited"]]
    assert heirs
    for row in heirs:
        donor = next(one for one in rows.values() if one["trial"] == row["inherited"][0]["trial"])
        epoch = row["inherited"][0]["epoch"]
        if not donor["inherited"]:
            assert row["history"][:epoch] == donor["history"][:epoch]
        assert 1e-9 <= row["train"]["lr"] <= 1e-2
        assert row["train"]["lr"] != row["point"]["train.lr"]
    assert all(Store.open(config.store).manifest(row["trial"]).id == row["snapshot"] for row in rows.values())
    assert not list((config.run_dir / "ray").rglob("*.safetensors"))


# Tune ends such trials without a word to its own loggers, whose files are closed only when they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed file:ResourceWarning")
def test_a_time_budget_ends_what_runs_and_leaves_what_waits(ray_local, tmp_path):
    """Stopped or not started, both are left for a later run; only the stopped one has a row."""
    config = job(
        tmp_path,
        {"train.lr": {"grid": [1e-3, 1e-4]}},
        train={"epochs": 10_000, "batch_size": 16},
        time_budget_s=10,
        resources={"max_concurrent": 1},
    )
    summary = run(config)
    assert (summary.num_done, summary.num_failed, summary.best) == (0, 0, None)
    assert summary.num_stopped + summary.num_left == 2
    for row in rows_of(config).values():
        assert (row["status"], row["stopped"]) == ("stopped", "time_budget")
        assert not TrialRow.read(row).is_final
        assert [entry["epoch"] for entry in row["history"]] == list(range(1, len(row["history"]) + 1))


# Optuna


def test_a_resumed_optuna_sweep_asks_for_the_rest(ray_local, tmp_path):
    pytest.importorskip("optuna")
    space = {
        "train.optimizer": {"choice": ["adam", "sgd"]},
        "train.lr": [
            {"when": {"train.optimizer": "sgd"}, "loguniform": [0.01, 0.1]},
            {"loguniform": [1e-4, 1e-2]},
        ],
    }
    config = job(tmp_path, space, search_algorithm="optuna", num_samples=3, resources={"max_concurrent": 1})
    summary = run(config)
    rows = rows_of(config)
    assert (summary.num_trials, summary.num_done, sorted(rows)) == (3, 3, ["001", "002", "003"])
    for row in rows.values():
        low, high = (0.01, 0.1) if row["point"]["train.optimizer"] == "sgd" else (1e-4, 1e-2)
        assert low <= row["point"]["train.lr"] == row["train"]["lr"] <= high
    planned = (config.run_dir / "trials.jsonl").read_text()
    lines = (config.run_dir / "results.jsonl").read_text().splitlines(keepends=True)
    missing = next(line for line in lines if json.loads(line)["trial"].startswith("002"))
    (config.run_dir / "results.jsonl").write_text("".join(line for line in lines if line != missing))
    run(config, resume=True)
    assert (config.run_dir / "trials.jsonl").read_text() == planned
    assert rows_of(config)["002"]["point"] == rows["002"]["point"]


# The studies

ONLY_DEEP = pytest.mark.skipif(os.environ.get("RAYSNAP_DEEP") != "1", reason="a minute of Ray; see tools/deep")
NO_PRETRAINING = "base.pretraining=null"  # one study with it is enough: it takes an actor more, five seconds of imports


def without_times(row: dict) -> dict:
    row = {name: value for name, value in row.items() if name not in TIMES}
    return row | {"history": [{k: v for k, v in entry.items() if k != "epoch_s"} for entry in row["history"]]}


@pytest.mark.parametrize(
    ("study", "at_once", "overrides"),
    [
        pytest.param("fashion_mnist_grid_small", (1, 2), ["train.epochs=1"], marks=ONLY_DEEP),
        pytest.param(
            "inaturalist_freeze_small",
            (1, 1),
            [NO_PRETRAINING, "space.train.epochs={grid: [1]}", "space.retrain.freeze_fraction={grid: [0.8, 0.9]}"],
            marks=ONLY_DEEP,
        ),
        ("caltech101_layerwise_small", (1, 1), [NO_PRETRAINING, "train.epochs=2", "train.patience=1"]),
    ],
)
def test_a_small_study_gives_equal_results_from_run_to_run(ray_local, tmp_path, study, at_once, overrides):
    tiny = "shapes={image_size: 36, num_train: 24, num_val: 8, num_test: 8}"
    results = []
    for number, max_concurrent in enumerate(at_once, start=1):
        places = [f"{key}={tmp_path / str(number) / key}" for key in ("run_dir", "store", "data_dir")]
        resources = f"resources.max_concurrent={max_concurrent}"
        config = load_config(find_config(study), [*overrides, tiny, resources, *places], SweepConfig)
        config = shortened(config)
        summary = run(config)
        assert (summary.num_failed, summary.num_done) == (0, summary.num_trials)
        assert "<html" in write_report(config.run_dir).read_text()
        results.append({name: without_times(row) for name, row in rows_of(config).items()})
    assert results[0] == results[1]


def shortened(config: SweepConfig) -> SweepConfig:
    """Return the same sweep with bases that are pretrained for one epoch."""
    document = json.loads(json.dumps(config.model_dump(mode="json")))
    for base in (document["base"], document["space"].get("base", {}).get("grid", {}).get("pretrained", {})):
        if base.get("pretraining"):
            base["pretraining"]["train"] |= {"epochs": 1}
    return SweepConfig.model_validate(document)


def test_generators_are_restored_after_seeding():
    states = random.getstate(), np.random.get_state()[1].tolist()
    with seeded_generators(3):
        first = random.random(), float(np.random.rand())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    with seeded_generators(3):
        assert (random.random(), float(np.random.rand())) == first
