"""Writers that are killed and machines that lose power: the store holds the old or the new, whole, and goes on.

Rows 1 to 3 of the fault table: a kill in place of every system call, real kills at random moments, and power cuts that
lose, zero, tear and reorder what was not fsynced.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from random import Random

import pytest

from raysnap.errors import RaysnapError, StoreError
from raysnap.store.store import Store
from tests.support import SUPPORT
from tests.support.store_disk import Disk, Killed, killed_at
from tests.support.store_laws import COUNTS, IS_DEEP, SEED, check_laws, copy, disk_folder, few_shards
from tests.support.store_power import Power, Tree, cuts, restore
from tests.support.store_scenarios import SCENARIOS, Scenario

NESTED = Path("deep", "er", "store")
MAX_ROUNDS = 1_000
SEEDS_EACH = 4  # a scenario makes blocks of so many seeds


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with disk_folder() as path:
        yield path


@pytest.fixture
def bench(folder, monkeypatch) -> Iterator[Path]:
    """Return an empty folder on the fast disk."""
    few_shards(monkeypatch, seeds_of(0))
    path = folder / "bench"
    path.mkdir()
    yield path
    shutil.rmtree(path)


def seeds_of(round_index: int) -> range:
    return range(SEEDS_EACH * (SEED + round_index), SEEDS_EACH * (SEED + round_index + 1))


def prepare(bench: Path, name: str, round_index: int = 0) -> tuple[Path, Scenario]:
    """Return the folder with the scenario's store in it, where it has one, and the scenario."""
    base = bench / "template"
    base.mkdir()
    scenario = SCENARIOS[name](base / NESTED, bench / "scratch", SEEDS_EACH * (SEED + round_index))
    shutil.rmtree(bench / "scratch", ignore_errors=True)
    return base, scenario


def run(scenario: Scenario, disk: Disk, path: Path, first: int = 0) -> int:
    """Do the steps on the disk; return how many were reported done before the process was killed."""
    num_done = first
    try:
        with disk:
            for step in scenario.steps[first:]:
                step.act(path)
                num_done += 1
                disk.mark()
    except Killed:
        pass
    return num_done


def check_state(path: Path, scenario: Scenario, num_done: int) -> None:
    if not (path / "store.json").exists():
        assert scenario.old is None and num_done == 0
        with pytest.raises(StoreError):
            Store.open(path)
        Store.open(path, create=True)
    newest = max((b'"format":2' in one.read_bytes() for one in (path / "snapshots").glob("*.json")), default=False)
    assert not newest or json.loads((path / "store.json").read_bytes())["format"] == 2
    check_laws(path, scenario.allowed(num_done), lambda: scenario.finish(path, num_done), scenario.known)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_kill_at_any_step_leaves_the_old_state_or_the_new(bench, name, monkeypatch):
    for round_index in range(COUNTS.kill_seeds):
        few_shards(monkeypatch, seeds_of(round_index))
        base, scenario = prepare(bench, name, round_index)
        whole = Disk(copy(base, bench / "whole") / NESTED)
        assert run(scenario, whole, whole.root) == len(scenario.steps)
        assert {"create", "write", "fsync", "rename", "commit"} <= {call.kind for call in whole.calls}
        for step in range(1, len(whole.calls) + 1):
            path = copy(base, bench / "killed") / NESTED
            disk = Disk(path, killed_at(step))
            num_done = run(scenario, disk, path)
            assert len(disk.calls) == step
            check_state(path, scenario, num_done)
            assert disk.strays == []
            assert {one.name for one in (bench / "killed").iterdir()} <= {"deep"}
        shutil.rmtree(base)


def test_a_writer_may_be_killed_at_the_same_step_again_and_again(bench):
    """Each further try gets as far as the one before it, and the one that is let through finishes all."""
    base, scenario = prepare(bench, "under an old name")
    for step in range(1, 40, 3):
        path = copy(base, bench / "killed") / NESTED
        num_done = 0
        for _ in range(3):
            num_done = run(scenario, Disk(path, killed_at(step)), path, first=num_done)
        check_state(path, scenario, num_done)


@pytest.mark.slow
def test_real_kills_at_random_moments_lose_nothing(bench):
    script = SUPPORT / "store_processes.py"
    result = subprocess.run([sys.executable, str(script), "struck", str(bench)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# Power cuts


def power_cuts(power: Power, disk: Disk, num_states: int) -> Iterator[tuple[int, Tree]]:
    """Distinct states that a power cut may leave after any change, with the number of steps reported done by then."""
    seen = set()
    for round_index in range(MAX_ROUNDS):
        moment, random = deepcopy(power), Random(SEED + round_index)
        num_done = 0
        for change in disk.changes:
            moment.apply(change)
            num_done += change.kind == "mark"
            for tree in cuts(moment, random, num_random=2):
                key = hash((num_done, frozenset(tree.items())))
                if key not in seen:
                    seen.add(key)
                    yield num_done, tree
        if len(seen) >= num_states:
            return
    raise AssertionError(f"expected {num_states} states, found {len(seen)}")


def check_power_cuts(bench: Path, scenario: Scenario, disk: Disk, power: Power, num_states: int) -> None:
    for num_done, tree in power_cuts(power, disk, num_states):
        restore(tree, bench / "cut")
        check_state(bench / "cut" / NESTED, scenario, num_done)
        shutil.rmtree(bench / "cut")


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_power_cut_leaves_the_old_or_the_reported_state(bench, name):
    base, scenario = prepare(bench, name)
    power, disk = Power(base), Disk(base / NESTED)
    assert run(scenario, disk, disk.root) == len(scenario.steps)
    check_power_cuts(bench, scenario, disk, power, -(-COUNTS.power_states // len(SCENARIOS)))


@pytest.mark.parametrize("name", ["under an old name", "first of format 2", "with a first record"])
def test_putting_again_syncs_what_a_killed_writer_left(bench, name):
    """What is visible may not be on the disk yet; who finds a manifest, name or record there makes sure that it is."""
    base, scenario = prepare(bench, name)
    whole = Disk(copy(base, bench / "whole") / NESTED)
    run(scenario, whole, whole.root)
    renames = [number for number, call in enumerate(whole.calls, start=1) if call.kind in ("rename", "link")]
    for step in renames if IS_DEEP else sorted({*renames[::5], *renames[-3:]}):
        path = copy(base, bench / "live") / NESTED
        power = Power(bench / "live")
        killed, again = Disk(path, killed_at(step + 1)), Disk(path)
        num_done = run(scenario, killed, path)
        run(scenario, again, path, first=num_done)
        killed.changes += again.changes
        check_power_cuts(bench, scenario, killed, power, 1)


# For each fsync, the paths it is made for and a scenario that needs it.
SYNCS = {
    "a block's bytes": ("beside shared blocks", lambda path: path.name.startswith("block-")),
    "a manifest's bytes": ("beside shared blocks", lambda path: path.name.startswith("draft-")),
    "a name's bytes": ("under an old name", lambda path: path.name.startswith("file-")),
    "a block's folder": ("beside shared blocks", lambda path: path.parent.name == "objects"),
    "the folder of manifests": ("beside shared blocks", lambda path: path.name == "snapshots"),
    "the folder of names": ("under an old name", lambda path: path.name == "refs"),
    "the folder of records": ("with a first record", lambda path: path.name == "records"),
    "the store's folder with that of records": ("with a first record", lambda path: path.name == "store"),
    "a record's bytes": ("with a first record", lambda path: path.name.startswith("file-")),
    "the folder of names, taken away": ("after a removal", lambda path: path.name == "refs"),
    "the folder of manifests, taken away": ("after a removal", lambda path: path.name == "snapshots"),
    "the folder of shards": ("in no store", lambda path: path.name == "objects"),
    "the store's folder": ("in no store", lambda path: path.name == "store"),
    "the folder above the store": ("in no store", lambda path: path.name == "er"),
    "the folder above that": ("in no store", lambda path: path.name == "deep"),
}


@pytest.mark.parametrize(("name", "is_forgotten"), SYNCS.values(), ids=SYNCS)
def test_a_power_cut_finds_every_fsync_that_is_left_out(bench, name, is_forgotten):
    base, scenario = prepare(bench, name)
    power, disk = Power(base), Disk(base / NESTED, forgets_sync=is_forgotten)
    assert run(scenario, disk, disk.root) == len(scenario.steps)
    assert disk.num_forgotten > 0
    with pytest.raises((AssertionError, RaysnapError)) as caught:
        check_power_cuts(bench, scenario, disk, power, 1)
    assert "expected 1 states" not in str(caught.value)
