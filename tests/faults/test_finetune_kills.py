"""`raysnap finetune` killed with signal 9 in each of its parts, and resumed: nothing is trained twice, one record each.

Each case starts Ray several times, so they run with RAYSNAP_DEEP=1 only; `tests/jobs/test_finetune.py` interrupts the
same places without a signal.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raysnap.config.parts import ShapesConfig
from raysnap.datasets.dataset import open_dataset
from raysnap.runs.json_fields import read_rows
from raysnap.store.store import Store
from tests.support.search_stores import put, variant

pytestmark = pytest.mark.skipif("RAYSNAP_DEEP" not in os.environ, reason="takes minutes; set RAYSNAP_DEEP=1")

SMALL = "mobilenet_v3_small"
NUM_TRIALS = 4
DEADLINE_S = 170


@pytest.fixture
def place(tmp_path) -> Path:
    store = Store.open(tmp_path / "store", create=True)
    for seed, name in enumerate(("first", "second")):
        put(store, name, variant(SMALL, seed, 0, base_seed=seed), SMALL)
    open_dataset(
        "shapes-shape-a", tmp_path / "data", ShapesConfig(image_size=36, num_train=64, num_val=32, num_test=32)
    )
    return tmp_path


def start(place: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "raysnap", "finetune", "--data", "shapes-shape-a", "--run-dir", "run", "--json"]
    keys = ["train.epochs=4", "space={retrain.index: {grid: [0, 1]}}", "resources.max_concurrent=1", "grace_epochs=4"]
    with (place / "log").open("ab") as log:
        return subprocess.Popen(
            [*command, *keys, *more], cwd=place, stdout=subprocess.PIPE, stderr=log, process_group=0
        )


def rows(place: Path) -> list[dict]:
    return read_rows(place / "run/training/results.jsonl")


def is_searching(place: Path) -> bool:
    return (place / "run/config.yaml").exists()


def is_training(place: Path) -> bool:
    return len(rows(place)) >= 1


def is_about_to_store(place: Path) -> bool:
    """Whether only the best fine-tune, which is held back until the end, has no row yet."""
    return len(rows(place)) >= NUM_TRIALS - 1


@pytest.mark.slow
@pytest.mark.parametrize("is_time", [is_searching, is_training, is_about_to_store])
def test_killed_and_resumed(place, is_time: Callable[[Path], bool]):
    process = start(place)
    deadline_s = time.monotonic() + DEADLINE_S
    while not is_time(place):
        assert process.poll() is None and time.monotonic() < deadline_s, (place / "log").read_text()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    ended = {row["trial"]: row for row in rows(place)}
    resumed = start(place, "--resume")
    out, _ = resumed.communicate(timeout=DEADLINE_S)
    assert resumed.returncode == 0, (place / "log").read_text()
    summary = json.loads(out)
    after = rows(place)
    assert len(after) == len({row["trial"] for row in after}) == NUM_TRIALS, "nothing is trained twice"
    assert all(row == ended[row["trial"]] for row in after if row["trial"] in ended)
    store = Store.open(place / "store")
    assert len(list(store.records())) == NUM_TRIALS, "one record for each fine-tune"
    assert store.manifest("shapes-shape-a-finetuned").id == summary["best"]["snapshot"]
    assert store.verify()["ok"]
