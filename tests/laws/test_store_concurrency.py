"""Many processes on one store: no commit, name or needed block is lost while others write, collect or are killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raysnap.store import audit, catalog
from raysnap.store.backends.folder import Folder
from raysnap.store.store import Store
from raysnap.testing.blocks import make_blocks, put
from tests.support import SUPPORT

DEEP = os.environ.get("RAYSNAP_DEEP") == "1"
NUM_WORKERS, NUM_COMMITS = (64, 500) if DEEP else (8, 50)
STORM_S = 7200 if DEEP else 10
MOST_S = 4 * 3600 if DEEP else 180

pytestmark = pytest.mark.timeout(MOST_S)


def crowd(law: str, folder: Path, *numbers: float) -> dict[str, int]:
    """Return what the crowd did; it works in processes of its own, forked from one without threads."""
    script = SUPPORT / "store_crowd.py"
    command = [sys.executable, str(script), law, str(folder), *map(str, numbers)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=MOST_S)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_concurrent_writers_lose_nothing(tmp_path):
    assert crowd("writers", tmp_path, NUM_WORKERS, NUM_COMMITS)["num_commits"] == NUM_WORKERS * NUM_COMMITS


@pytest.mark.slow
def test_random_kills_lose_no_needed_block_and_leave_no_other(tmp_path):
    result = crowd("storm", tmp_path, STORM_S, 8128)
    assert result["num_kills"] >= STORM_S
    assert result["num_stored"] >= STORM_S
    assert result["num_live"] > 0


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.open(tmp_path / "store", create=True)


@pytest.mark.parametrize("moment", ["check_vacant", "prepare"])
def test_a_store_created_by_another_process_is_opened(tmp_path, monkeypatch, moment):
    path = tmp_path / "store"
    unhurried, made = getattr(Folder, moment), []

    def overtaken(*args: object) -> object:
        monkeypatch.undo()
        put(Store.open(path, create=True), name="mine")
        made.append((path / "store.json").stat().st_ino)
        return unhurried(*args)

    monkeypatch.setattr(Folder, moment, overtaken)
    store = Store.open(path, create=True)
    assert list(store.refs()) == ["mine"]
    assert [(path / "store.json").stat().st_ino] == made
    assert not list((path / "tmp").iterdir())


def test_a_name_removed_during_verify_is_not_damage(store, monkeypatch):
    put(store, name="mine")
    resolve = catalog.resolve

    def resolve_too_late(*arguments):
        store.remove_ref("mine")
        return resolve(*arguments)

    monkeypatch.setattr(audit, "resolve", resolve_too_late)
    assert store.verify()["ok"]


def test_a_name_moved_during_a_removal_is_not_damage(store, monkeypatch):
    old, new = (put(store, seed=seed).manifest.id for seed in range(2))
    store.set_ref("mine", old)
    (store.path / "snapshots" / f"{old}.json").unlink()
    resolve = catalog.resolve

    def resolve_then_move(*arguments):
        try:
            return resolve(*arguments)
        finally:
            store.set_ref("mine", new)

    monkeypatch.setattr(audit, "resolve", resolve_then_move)
    assert store.verify()["ok"]


def test_a_block_rewritten_during_verify_is_not_damage(store, monkeypatch):
    store.put_block(make_blocks()[0][1])
    check_block = audit._check_block

    def check_while_it_is_away(*arguments):
        monkeypatch.undo()
        store.gc(grace_s=0)
        try:
            return check_block(*arguments)
        finally:
            put(store)

    monkeypatch.setattr(audit, "_check_block", check_while_it_is_away)
    assert store.verify()["ok"]
