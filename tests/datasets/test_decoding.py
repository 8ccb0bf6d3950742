"""Decoding by threads and by processes: the same bytes, and a process that dies costs no more than its own image."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from raysnap.datasets import decoding
from raysnap.datasets.decoding import DecodeJob, decode_into
from raysnap.datasets.resizing import Resizing
from raysnap.errors import DataError
from tests.support.bad_images import noise_image

RESIZING = Resizing(16)
SLOT_BYTES = RESIZING.slot_bytes
NUM_IMAGES = 40


@pytest.fixture
def jobs(tmp_path) -> list[DecodeJob]:
    """As many images as two processes take in several runs each; the third is empty, the fifth's name is odd."""
    made = []
    for index in range(NUM_IMAGES):
        path = tmp_path / ("\udcff ü\n.png" if index == 4 else f"{index}.png")
        noise_image(20 + index % 3 * 10, 30, index).save(path)
        made.append(DecodeJob(str(path), index * SLOT_BYTES))
    Path(made[2].path).write_bytes(b"")
    return made


@pytest.fixture
def processes(monkeypatch) -> None:
    """Two processes, whatever the machine and however few the images."""
    monkeypatch.setattr(decoding, "MAX_THREADS", 1)
    monkeypatch.setattr(decoding, "MIN_JOBS_PER_PROCESS", 1)
    monkeypatch.setattr(decoding, "num_cpus", lambda: 2)


def nobody_else(job: DecodeJob) -> bool:
    return False


def decode(
    folder: Path, jobs: list[DecodeJob], is_done: Callable[[DecodeJob], bool] = nobody_else, **options: bool
) -> tuple[dict[DecodeJob, decoding.Outcome], bytes]:
    """Return the outcomes by job, and what the file holds."""
    with (folder / "slots.bin").open("w+b", buffering=0) as file:
        with closing(decode_into(file.fileno(), jobs, RESIZING, is_done, **options)) as done:
            outcomes = list(done)
        assert len(dict(outcomes)) == len(outcomes)
        return dict(outcomes), Path(file.name).read_bytes()


def plant(folder: Path, monkeypatch, code: str) -> None:
    """Has every process of the test run this code as it begins."""
    (folder / "planted").mkdir()
    (folder / "planted" / "sitecustomize.py").write_text(f"import os, signal\n{code}\n")
    monkeypatch.setenv("PYTHONPATH", str(folder / "planted"))


def at_offset(offset: int, deed: str) -> str:
    """Code that does a deed in place of writing at an offset."""
    return f"real = os.pwrite\nos.pwrite = lambda *args: {deed} if args[2] == {offset} else real(*args)"


KILL = "os.kill(os.getpid(), signal.SIGKILL)"


def test_processes_and_threads_write_the_same_bytes(tmp_path, jobs, request):
    by_threads = decode(tmp_path, jobs)
    request.getfixturevalue("processes")
    assert decode(tmp_path, jobs) == by_threads
    outcomes, content = by_threads
    assert set(outcomes) == set(jobs)
    assert outcomes.pop(jobs[2]) == f"{jobs[2].path}: expected an image, found an empty file"
    assert outcomes[jobs[0]] == (24, 16) and outcomes[jobs[1]] == (16, 16) and outcomes[jobs[5]] == (16, 21)
    assert content[: SLOT_BYTES // 2] != bytes(SLOT_BYTES // 2)


@pytest.mark.parametrize("by", ["threads", "processes"])
def test_what_somebody_else_did_is_left_out(tmp_path, jobs, by, request):
    if by == "processes":
        request.getfixturevalue("processes")
    others = set(jobs[::3]) | set(jobs[16:32])
    outcomes, _ = decode(tmp_path, jobs, others.__contains__)
    assert set(outcomes) == set(jobs) - others
    assert decode(tmp_path, jobs, set(jobs).__contains__)[0] == {}


def test_a_process_imports_neither_torch_nor_ray():
    names = "('torch', 'ray', 'pandas')"
    code = f"import sys, raysnap.datasets.decoding; print([name for name in {names} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"[]"


def test_a_killed_process_is_replaced_and_nothing_is_lost(tmp_path, jobs, processes, monkeypatch):
    expected = decode(tmp_path, jobs)
    give, killed = decoding._Worker.give, []

    def give_and_kill(worker: decoding._Worker, batch: list[DecodeJob]) -> None:
        if len(killed) < 3:
            killed.append(worker.process.pid)
            worker.process.kill()
            worker.process.wait()
        give(worker, batch)

    monkeypatch.setattr(decoding._Worker, "give", give_and_kill)
    assert decode(tmp_path, jobs) == expected
    assert len(killed) == 3


def test_an_image_that_crashes_every_process_alone_is_bad(tmp_path, jobs, processes, monkeypatch):
    plant(tmp_path, monkeypatch, at_offset(jobs[7].offset, KILL))
    outcomes, _ = decode(tmp_path, jobs)
    bad = {job for job, outcome in outcomes.items() if isinstance(outcome, str)}
    assert bad == {jobs[2], jobs[7]}
    assert outcomes[jobs[7]].startswith(f"{jobs[7].path}: expected an image, found one that crashes the decoder")
    assert "signal 9, Killed" in outcomes[jobs[7]]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("os._exit(3)", r"found one that died at the start \(exit code 3\); check for free memory"),
        (f"os.pwrite = lambda *args: {KILL}", r"found 4 that died at work \(signal 9, Killed\)"),
    ],
)
def test_processes_that_all_die_are_an_error_that_says_how(tmp_path, jobs, processes, monkeypatch, code, reason):
    plant(tmp_path, monkeypatch, code)
    monkeypatch.setattr(decoding, "MAX_DEATHS", 3)
    with pytest.raises(DataError, match=reason):
        decode(tmp_path, jobs)


def test_processes_report_a_full_disk(tmp_path, jobs, processes, monkeypatch):
    plant(tmp_path, monkeypatch, "def full(*_): raise OSError(28, 'full')\nos.pwrite = full")
    with pytest.raises(OSError, match="No space left on device"):
        decode(tmp_path, jobs)


@pytest.mark.parametrize("num_taken", [0, 1, 20])
def test_who_stops_early_leaves_no_process_behind(tmp_path, jobs, processes, monkeypatch, num_taken):
    started = []

    def popen(*args: object, start=subprocess.Popen, **options: object) -> subprocess.Popen:
        started.append(start(*args, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    with (
        (tmp_path / "slots.bin").open("w+b", buffering=0) as file,
        closing(decode_into(file.fileno(), jobs, RESIZING, nobody_else)) as done,
    ):
        for _ in range(num_taken):
            next(done)
    assert len(started) == (2 if num_taken else 0)
    assert all(process.returncode is not None for process in started)


def test_a_process_ends_when_nobody_listens_any_more(tmp_path):
    with (tmp_path / "slots.bin").open("w+b", buffering=0) as file:
        worker = decoding._Worker(file.fileno(), RESIZING)
    assert worker.take() == []
    worker.process.stdin.close()
    assert worker.process.wait(timeout=30) == 0
    worker.end()


def test_ctrl_c_reaches_the_one_who_waits_and_not_the_processes(tmp_path):
    with (tmp_path / "slots.bin").open("w+b", buffering=0) as file:
        worker = decoding._Worker(file.fileno(), RESIZING)
    assert os.getpgid(worker.process.pid) != os.getpgid(0)
    worker.end()


def test_few_images_or_few_cpus_are_decoded_by_threads(tmp_path, jobs, monkeypatch):
    monkeypatch.setattr(decoding, "_Worker", None)
    monkeypatch.setattr(decoding, "num_cpus", lambda: 64)
    assert len(decode(tmp_path, jobs)[0]) == NUM_IMAGES
    monkeypatch.setattr(decoding, "num_cpus", lambda: 4)
    monkeypatch.setattr(decoding, "MIN_JOBS_PER_PROCESS", 1)
    assert len(decode(tmp_path, jobs)[0]) == NUM_IMAGES


def test_a_busy_process_leaves_decoding_to_others(tmp_path, jobs, monkeypatch):
    monkeypatch.setattr(decoding, "num_cpus", lambda: 2)
    monkeypatch.setattr(decoding, "MIN_JOBS_PER_PROCESS", 1)
    expected = decode(tmp_path, jobs)
    monkeypatch.setattr(decoding, "_by_threads", None)
    assert decode(tmp_path, jobs, is_busy=True) == expected
