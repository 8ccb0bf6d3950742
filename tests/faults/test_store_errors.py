"""Disks that fail: an error is one line that says what is the matter, nothing is lost, and a retry finishes.

Rows 4 and 5 of the fault table: an I/O error, an interruption or a short transfer at every call, and a full disk, both
simulated at every call and a real one, as a limit on file sizes and as a small memory disk.
"""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

import pytest
import torch

from raysnap.cli.app import main
from raysnap.errors import RaysnapError, StoreDamaged, StoreError
from raysnap.models.blocks import random_tensors
from raysnap.store.store import Store
from raysnap.testing.blocks import put
from tests.support import ROOT, SUPPORT
from tests.support.store_disk import CHANGING, Disk, failing_at, full_from, short_at
from tests.support.store_laws import COUNTS, SEED, check_clean, check_laws, copy, disk_folder, few_shards
from tests.support.store_scenarios import SCENARIOS, Scenario

CAUSES = {
    errno.EIO: "Input/output error",
    errno.EINTR: "Interrupted system call",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with disk_folder() as path:
        yield path


@pytest.fixture
def empty_dir(folder) -> Iterator[Path]:
    path = folder / "bench"
    path.mkdir()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def bench(empty_dir, monkeypatch) -> Path:
    """Return an empty folder, for stores of few shards."""
    few_shards(monkeypatch, range(SEED, SEED + 10))
    return empty_dir


def prepare(bench: Path, name: str) -> tuple[Path, Scenario, list]:
    """Return a template of the scenario's store, the scenario and its calls when nothing fails."""
    template = bench / "template"
    template.mkdir()
    scenario = SCENARIOS[name](template / "store", bench / "scratch", SEED)
    disk = Disk(copy(template, bench / "whole") / "store")
    assert run(scenario, disk)[0] == len(scenario.steps)
    return template, scenario, disk.calls


def run(scenario: Scenario, disk: Disk) -> tuple[int, RaysnapError | None]:
    """Do the steps on the disk; return how many were reported done, and the error of the one that was not."""
    for num_done, step in enumerate(scenario.steps):
        try:
            with disk:
                step.act(disk.root)
        except RaysnapError as error:
            return num_done, error
    return len(scenario.steps), None


def check_state(path: Path, scenario: Scenario, num_done: int) -> None:
    if not (path / "store.json").exists():
        assert scenario.old is None and num_done == 0
        Store.open(path, create=True)
    check_laws(path, scenario.allowed(num_done), lambda: scenario.finish(path, num_done), scenario.known)


def check_error(error: RaysnapError | None, path: Path, code: int) -> None:
    if error is not None:
        assert isinstance(error, StoreError | StoreDamaged), error
        assert error.exit_code != 0
        assert CAUSES[code] in str(error)
        assert str(path) in str(error)
        assert "\n" not in str(error)


@pytest.mark.parametrize("code", [errno.EIO, errno.EINTR], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", SCENARIOS)
def test_an_error_of_any_call_is_one_line_and_a_retry_finishes(bench, name, code):
    template, scenario, calls = prepare(bench, name)
    num_errors = 0
    for step in range(1, len(calls) + 1):
        disk = Disk(copy(template, bench / "failing") / "store", failing_at(step, code))
        num_done, error = run(scenario, disk)
        check_error(error, disk.root, code)
        check_state(disk.root, scenario, num_done)
        assert disk.strays == []
        num_errors += error is not None
    assert num_errors > 20


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_transfer_that_moves_one_byte_is_continued(bench, name):
    template, scenario, calls = prepare(bench, name)
    for step in [number for number, call in enumerate(calls, start=1) if call.kind in ("read", "write")]:
        disk = Disk(copy(template, bench / "failing") / "store", short_at(step))
        assert run(scenario, disk) == (len(scenario.steps), None)
        assert len(disk.calls) > len(calls) - 3
        check_state(disk.root, scenario, len(scenario.steps))


def test_reads_of_one_byte_each_return_what_was_put(bench):
    template, scenario, _ = prepare(bench, "beside shared blocks")
    path = template / "store"
    with Disk(path, lambda number, call: 1) as disk:
        check_state_of_reads(Store.open(path), scenario)
    assert sum(call.kind == "read" for call in disk.calls) > 1_000


def check_state_of_reads(store: Store, scenario: Scenario) -> None:
    assert scenario.old is not None
    for snapshot, blocks in scenario.old.snapshots.items():
        for entry, (_, tensors) in zip(store.manifest(snapshot).blocks, blocks, strict=True):
            found = store.read_block(entry.digest)
            assert all(torch.equal(found[key], tensors[key]) for key in tensors)
    assert store.refs() == scenario.old.names
    assert store.verify()["ok"]


@pytest.mark.parametrize("code", [errno.EIO, errno.EINTR], ids=errno.errorcode.get)
def test_a_read_error_is_raised_and_never_shortens_a_list(bench, code):
    """Every call of a full reading, of a listing and of a check fails in turn."""
    template, scenario, _ = prepare(bench, "beside shared blocks")
    path = template / "store"

    def read_all() -> None:
        store = Store.open(path)
        check_state_of_reads(store, scenario)
        assert {summary.id for summary in store.summaries()} == scenario.old.snapshots.keys()

    with Disk(path) as whole:
        read_all()
    num_errors = 0
    for step in range(1, len(whole.calls) + 1):
        message = ""
        try:
            with Disk(path, failing_at(step, code)) as disk:
                read_all()
        except (StoreError, StoreDamaged) as error:
            message = str(error)
        except AssertionError:  # what a check reports, or a listing leaves out and logs
            assert disk.calls[step - 1].kind in ("read", "open", "list")
            num_errors += 1
        assert not message or CAUSES[code] in message
        num_errors += bool(message)
    assert num_errors > 10
    read_all()


@pytest.mark.skipif(not COUNTS.random_errors, reason="only in tools/deep")
def test_random_errors_in_a_row_are_survived(bench):
    template, scenario, calls = prepare(bench, "under an old name")
    random = Random(SEED)
    for _ in range(COUNTS.random_errors):
        path = copy(template, bench / "failing") / "store"
        num_done = 0
        for _ in range(3):
            code = random.choice([errno.EIO, errno.EINTR])
            rest = Scenario(scenario.old, scenario.steps[num_done:])
            more_done, error = run(rest, Disk(path, failing_at(random.randint(1, len(calls)), code)))
            num_done += more_done
            check_error(error, path, code)
        check_state(path, scenario, num_done)


# Full disks


def check_full(template: Path, bench: Path, scenario: Scenario, step: int, code: int) -> bool:
    """Whether anything failed on a disk that is full from this call on; it was said, and `gc` works there."""
    disk = Disk(copy(template, bench / "full") / "store", full_from(step, code))
    num_done, error = run(scenario, disk)
    check_error(error, disk.root, code)
    assert disk.strays == []
    if (disk.root / "store.json").exists():
        with Disk(disk.root, full_from(0, code)) as full:
            Store.open(disk.root).gc(grace_s=0)
        assert not any(call.kind == "write" for call in full.calls)
        assert not list((disk.root / "tmp").iterdir())
    check_state(disk.root, scenario, num_done)
    return error is not None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_disk_that_fills_up_at_any_call_can_be_cleaned_up(bench, name, code):
    template, scenario, calls = prepare(bench, name)
    steps = [step for step, call in enumerate(calls, start=1) if call.kind in CHANGING]
    assert sum(check_full(template, bench, scenario, step, code) for step in steps) > 10


@pytest.mark.skipif(not COUNTS.random_full, reason="only in tools/deep")
def test_a_disk_that_fills_up_at_random_calls_is_survived(bench):
    random = Random(SEED)
    names = list(SCENARIOS)
    prepared = {}
    for name in names:
        (bench / name).mkdir()
        prepared[name] = prepare(bench / name, name)
    for _ in range(COUNTS.random_full):
        name = random.choice(names)
        template, scenario, calls = prepared[name]
        check_full(template, bench, scenario, random.randint(1, len(calls)), errno.ENOSPC)


@pytest.fixture(scope="module")
def weights_path(folder) -> Path:
    path = folder / "weights.pth"
    blocks = random_tensors("mobilenet_v3_small", num_classes=3, seed=0)
    torch.save({name: tensor for _, tensors in blocks for name, tensor in tensors.items()}, path)
    return path


def add_command(store: Path, weights: Path) -> list[str]:
    return ["store", "add", str(weights), "--arch", "mobilenet_v3_small", "--name", "mine", "--store", str(store)]


@pytest.mark.parametrize("kind", ["create", "write", "fsync", "rename"])
@pytest.mark.parametrize("what", ["block", "draft", "file"])
def test_the_command_line_exits_with_an_error_on_a_full_disk(bench, weights_path, capsys, kind, what):
    """At the first and a later block, at the manifest and at the name."""
    store = Store.open(bench / "store", create=True)
    fault = partial(_full_at, kind, what)
    with Disk(store.path, fault):
        assert main(add_command(store.path, weights_path)) == 2
    message = capsys.readouterr().err
    assert "the disk is full" in message
    assert "Traceback" not in message
    assert store.verify()["ok"]
    assert not list((store.path / "tmp").iterdir())


def _full_at(kind: str, what: str, number: int, call) -> None:
    folders = {"block": "objects", "draft": "snapshots", "file": "refs"}
    is_there = call.path.name.startswith(f"{what}-") or folders[what] in (call.path.parent.name, call.path.parts[-3])
    if call.kind == kind and is_there:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# Disks that are really full


def run_limited(limit_kib: int, *command: object) -> subprocess.CompletedProcess:
    """Run a command whose files may not pass this size."""
    shell = ["bash", "-c", f'ulimit -f {limit_kib}; exec "$@"', "bash", *map(str, command)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(shell, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)


def test_a_block_past_the_file_size_limit_is_an_error(empty_dir, weights_path):
    store = Store.open(empty_dir / "store", create=True)
    ended = run_limited(64, sys.executable, "-m", "raysnap", *add_command(store.path, weights_path))
    assert ended.returncode == 2, ended.stderr
    assert "would exceed this process's size limit" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert store.verify()["ok"]
    assert store.manifests() == []
    store.gc(grace_s=0)
    assert store.stats()["num_blocks"] == 0
    assert main(add_command(store.path, weights_path)) == 0


LIMITED = """
import sys
sys.path.insert(0, ".")
from raysnap.testing.blocks import put
from raysnap.store.store import Store
store = Store.open(sys.argv[1])
put(store, seed=2, train={"note": "x" * 100_000 if sys.argv[2] == "manifest" else ""})
assert len(store.summaries()) == 2 and not (store.path / "index.sqlite").exists()
"""


@pytest.mark.parametrize("what", ["manifest", "index"])
def test_the_file_size_limit_leaves_the_store_as_it_was(empty_dir, what):
    """A snapshot whose manifest is too long fails; one whose listing can't be kept is listed all the same."""
    store = Store.open(empty_dir / "store", create=True)
    put(store, seed=1)
    ended = run_limited(8, sys.executable, "-c", LIMITED, store.path, what)
    assert (ended.returncode == 0) == (what == "index"), ended.stderr
    assert ("would exceed this process's size limit" in ended.stderr) == (what == "manifest")
    assert store.verify()["ok"]
    assert len(store.manifests()) == (1 if what == "manifest" else 2)
    put(store, seed=2)
    assert len(store.manifests()) == 2
    check_clean(store.path)


@pytest.mark.slow
def test_a_full_small_disk_is_cleaned_up_by_the_commands(empty_dir, weights_path):
    script = SUPPORT / "store_full_disk.py"
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("needs unshare, to mount a memory disk")
    command = [unshare, "--user", "--map-root-user", "--mount", sys.executable, str(script), empty_dir, weights_path]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if ended.returncode == 77 or "unshare" in ended.stderr.splitlines()[-1:]:
        pytest.skip("this machine lets no one mount a memory disk")
    assert ended.returncode == 0, ended.stdout + ended.stderr
