"""Generating on a real local Ray: what trials train ends in the store, what fails is a row, what is done stays done."""

import json
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
import ray

from raysnap.config.jobs import GenerateConfig
from raysnap.errors import ArchitectureError, ConfigError, DataError, WeightsError
from raysnap.jobs.generate import generate
from raysnap.runs.json_fields import read_rows
from raysnap.store.store import Store
from tests.support.event_files import scalars

QUICK = {"epochs": 1, "batch_size": 16}


def job(directory: Path, **changes) -> GenerateConfig:
    settings = {
        "run_dir": directory / "run",
        "store": directory / "store",
        "data_dir": directory / "data",
        "datasets": ["shapes-shape-a", "shapes-colour-a"],
        "num_snapshots": 3,
        "image_size": 32,
        "shapes": {"image_size": 36, "num_train": 32, "num_val": 8, "num_test": 8},
        "base": {"weights": "random", "pretraining": {"dataset": "shapes-texture-a", "train": QUICK}},
        "train": QUICK | {"epochs": 2},
        "retrain": {"distribution": "fixed", "values": [2, 0, 8]},
        "resources": {"max_concurrent": 1},  # a second process takes longer to start than all trials take
    }
    return GenerateConfig.model_validate(settings | changes)


class LiveDisplay:
    """As a display on a terminal is: it holds what no process can hand to another."""

    def __init__(self):
        self.lock = threading.RLock()
        self.stages = {}

    def __call__(self, stage: str, num_done: int, num_all: int, note: str) -> None:
        with self.lock:
            self.stages[stage] = (num_done, num_all, note)


def run(config: GenerateConfig, resume: bool = False):
    display = LiveDisplay()
    summary = generate(config, resume=resume, on_progress=display)
    assert all(num_done == num_all for num_done, num_all, _ in display.stages.values())
    return summary


@pytest.fixture(scope="module")
def finished(ray_local, tmp_path_factory):
    config = job(tmp_path_factory.mktemp("generate"))
    return config, run(config)


def test_every_trial_is_a_row_and_a_snapshot_with_lineage(finished):
    config, summary = finished
    store = Store.open(config.store)
    rows = read_rows(config.run_dir / "results.jsonl")
    assert [row["status"] for row in rows] == ["done"] * 4
    assert (summary.num_trials, summary.num_done, summary.num_failed) == (4, 4, 0)
    assert {row["snapshot"] for row in rows} == set(summary.snapshots) == {m.id for m in store.manifests()}
    base = store.manifest("base-resnet18-shapes-texture-a")
    for row in rows:
        manifest = store.manifest(row["trial"])
        assert manifest.id == row["snapshot"]
        assert manifest.base == (None if row["role"] == "base" else base.id)
        assert manifest.dataset.name == row["dataset"]
        assert manifest.metrics["val_accuracy"] == row["history"][row["metrics"]["best_epoch"] - 1]["val_accuracy"]
    assert store.verify()["ok"]


def test_tensorboard_reads_only_each_trials_curves_by_epoch(finished):
    config, _ = finished
    for row in read_rows(config.run_dir / "results.jsonl"):
        stage = "base" if row["role"] == "base" else "trials"
        found = scalars(config.run_dir / "ray" / stage / row["trial"])
        epochs = [(entry["epoch"], pytest.approx(entry["val_accuracy"], abs=1e-6)) for entry in row["history"]]
        assert found["val/accuracy"] == epochs
        kept = row["metrics"]
        assert found["kept/test_accuracy"] == [(kept["best_epoch"], pytest.approx(kept["test_accuracy"], abs=1e-6))]
        assert {name.partition("/")[0] for name in found} == {"train", "val", "time", "kept"}


def test_frozen_blocks_are_the_bases_and_stored_once(finished):
    config, _ = finished
    store = Store.open(config.store)
    base = store.manifest("base-resnet18-shapes-texture-a")
    for row in read_rows(config.run_dir / "results.jsonl")[1:]:
        mine = store.manifest(row["snapshot"])
        num_frozen = 9 - row["retrain_index"]
        shared = [a.digest == b.digest for a, b in zip(mine.blocks, base.blocks, strict=True)]
        assert shared == [True] * num_frozen + [False] * (10 - num_frozen)
        assert row["new_blocks"] == 10 - num_frozen


def test_checkpoints_are_let_go_once_the_store_holds_them(finished):
    config, _ = finished
    assert not list(config.run_dir.rglob("*.safetensors"))
    assert not list(config.run_dir.rglob("trial.json"))
    assert list((config.run_dir / "ray").rglob("events.out.tfevents*")), "TensorBoard has something to show"


def test_frozen_outputs_are_cached_beside_the_data(finished):
    config, _ = finished
    assert all(list((config.data_dir / name).rglob("outputs.bin")) for name in config.datasets)
    for row in read_rows(config.run_dir / "results.jsonl"):
        if row["retrain_index"] in (0, 2):
            assert row["timings_s"]["prefix"] > 0.001, "filling and opening them took its time"


def test_the_run_directory_says_what_ran_where(finished):
    config, summary = finished
    environment = json.loads((config.run_dir / "env.json").read_text())
    assert environment["data"] == json.loads(json.dumps([asdict(account) for account in summary.data]))
    assert {one.dataset: sum(one.num_images.values()) for one in summary.data}.keys() >= set(config.datasets)
    assert environment["ray"] == ray.__version__
    assert environment["finished"] is not None
    assert len((config.run_dir / "trials.jsonl").read_text().splitlines()) == 4


def test_resuming_a_finished_run_trains_nothing(finished):
    config, summary = finished
    before = (config.run_dir / "results.jsonl").read_bytes()
    assert run(config, resume=True).snapshots == summary.snapshots
    assert (config.run_dir / "results.jsonl").read_bytes() == before


def test_a_run_is_resumed_only_when_asked_and_unchanged(finished):
    config, _ = finished
    with pytest.raises(ConfigError, match="already holds a run; add --resume"):
        run(config)
    with pytest.raises(ConfigError, match="seed: the run was started with 0, found 1"):
        run(config.model_copy(update={"seed": 1}), resume=True)


def test_a_resumed_run_trains_what_is_missing_to_equal_bytes(finished, tmp_path):
    _, summary = finished
    again = job(tmp_path, resources={"max_concurrent": 1})
    run(again)
    rows = (again.run_dir / "results.jsonl").read_text().splitlines(keepends=True)
    assert {json.loads(row)["snapshot"] for row in rows} == set(summary.snapshots), "equal seeds, equal bytes"
    kept = [row for row in rows if json.loads(row)["trial"].startswith(("base", "002"))]
    (again.run_dir / "results.jsonl").write_text("".join(kept))
    assert set(run(again, resume=True).snapshots) == set(summary.snapshots)
    assert len(read_rows(again.run_dir / "results.jsonl")) == 4


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"datasets": ["shapes-shap-a"]}, DataError),
        ({"base": {"weights": "IMAGENET1K_V7"}}, WeightsError),
        ({"architectures": ["vit_b_32"]}, ArchitectureError),
    ],
)
def test_what_can_not_run_is_refused_before_anything_is_written(tmp_path, changes, error):
    with pytest.raises(error):
        run(job(tmp_path, **changes))
    assert not list(tmp_path.iterdir())
