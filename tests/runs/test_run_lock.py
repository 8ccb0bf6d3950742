"""One writer per run directory, among real processes: nobody writes beside a live one, one does after a dead one."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from raysnap.cluster.session import interrupted_by_sigterm
from raysnap.errors import ConfigError, RunLocked
from raysnap.runs.run_lock import Pace, _succeed, _Writer, hold_run
from tests.support import SUPPORT

DEEP = os.environ.get("RAYSNAP_DEEP") == "1"
BEAT_S, STALE_S = 0.1, 3.0  # a busy machine stops a process for a second
PACE = Pace(BEAT_S, 0.5)

pytestmark = pytest.mark.timeout(120)


Start = Callable[[], subprocess.Popen]


@pytest.fixture
def start(tmp_path) -> Iterator[Start]:
    """Return what starts a process that writes in the test's folder, and kill those that are left in the end."""
    command = [sys.executable, str(SUPPORT / "run_writer.py"), str(tmp_path), str(BEAT_S), str(STALE_S)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with contextlib.ExitStack() as left:

        def start() -> subprocess.Popen:
            writer = left.enter_context(subprocess.Popen(command, text=True, **pipes))
            left.callback(writer.kill)
            return writer

        yield start


def has_begun(writer: subprocess.Popen) -> bool:
    """Wait until the process may write, or has ended."""
    return writer.stdout.readline() == "held\n"


def end(writer: subprocess.Popen) -> tuple[int, str]:
    """Let the process end; return its exit code and the error that it ended with."""
    _, said = writer.communicate(timeout=60)
    return writer.returncode, "".join(line for line in said.splitlines() if line.startswith("raysnap: "))


def lines(run_dir: Path) -> list[int]:
    path = run_dir / "lines"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def records(run_dir: Path) -> list[str]:
    return sorted(path.name for path in run_dir.glob(".writer-*"))


def plant(run_dir: Path, **facts) -> Path:
    """Leave the record of a writer on another machine, which changes no more."""
    path = run_dir / ".writer-1"
    elsewhere = replace(_Writer.here(), host="worker-7", machine="another boot", pid=1)
    path.write_bytes(replace(elsewhere, **facts).as_bytes())
    return path


@contextlib.contextmanager
def beating(path: Path) -> Iterator[None]:
    """Change a record in the background, as its writer on another machine does."""
    over = threading.Event()

    def beat() -> None:
        writer = _Writer.read(path.read_bytes())
        while not over.wait(BEAT_S):
            writer = replace(writer, beat=writer.beat + 1)
            path.write_bytes(writer.as_bytes())

    thread = threading.Thread(target=beat)
    thread.start()
    yield
    over.set()
    thread.join()


def wait_for(is_so: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def test_a_second_writer_is_refused_beside_a_live_one(start, tmp_path):
    first = start()
    assert has_begun(first)
    code, said = end(start())
    assert code == 2
    assert re.fullmatch(
        rf"raysnap: run_dir {tmp_path}: process {first.pid} on {socket.gethostname()} has been writing to it since "
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ; wait until it has ended, or stop it",
        said,
    )
    assert end(first) == (0, "")
    assert set(lines(tmp_path)) == {first.pid}


def test_writers_that_ended_are_succeeded_at_once(tmp_path):
    patient = Pace(0.1, 1000)
    for number in (1, 2, 3):
        with hold_run(tmp_path / "run", patient) as lock:
            lock.check()
            assert records(tmp_path / "run") == [f".writer-{number}"]
    with pytest.raises(ZeroDivisionError), hold_run(tmp_path / "run", patient):
        raise ZeroDivisionError
    with hold_run(tmp_path / "run", patient):
        assert records(tmp_path / "run") == [".writer-5"]


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_writer_is_succeeded_at_once(start, tmp_path, stop):
    first = start()
    assert has_begun(first)
    first.send_signal(stop)
    first.wait(timeout=30)
    with hold_run(tmp_path, Pace(0.1, 1000)):
        assert records(tmp_path) == [".writer-2"]


def test_a_dead_machine_is_succeeded_after_a_while(tmp_path, caplog):
    plant(tmp_path)
    started_s = time.monotonic()
    with hold_run(tmp_path, PACE):
        assert time.monotonic() - started_s >= PACE.stale_s
        assert records(tmp_path) == [".writer-2"]
    [told] = caplog.messages
    assert "process 1 on worker-7 wrote here but is not heard of now; taking over in " in told


def test_a_live_writer_on_another_machine_stays(tmp_path):
    path = plant(tmp_path, since="2026-01-31T12:00:00Z")
    message = "process 1 on worker-7 has been writing to it since 2026-01-31T12:00:00Z; wait until it has ended"
    with beating(path), pytest.raises(RunLocked, match=message), hold_run(tmp_path, Pace(BEAT_S, 30)):
        pass
    assert records(tmp_path) == [".writer-1"]


@pytest.mark.parametrize(
    ("facts", "is_dead"),
    [
        ({}, False),
        ({"started": "1"}, True),  # the number of a process that ended, given to another
        ({"pid": 2**22 + 1}, True),
        ({"pid": 2**22 + 1, "machine": "another container of this boot"}, False),
        ({"pid": 2**22 + 1, "machine": None}, False),
    ],
)
def test_only_its_own_machine_knows_that_a_process_died(facts, is_dead):
    assert replace(_Writer.here(), **facts).is_dead == is_dead


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": 3}', b"\xff"])
def test_a_record_that_is_not_whole_counts_as_a_writer(tmp_path, content):
    (tmp_path / ".writer-4").write_bytes(content)
    started_s = time.monotonic()
    with hold_run(tmp_path, PACE):
        assert time.monotonic() - started_s >= PACE.stale_s
        assert records(tmp_path) == [".writer-5"]


@pytest.mark.parametrize("attempt", range(25 if DEEP else 2))
def test_one_of_many_takes_over_from_a_dead_writer(start, tmp_path, attempt):
    plant(tmp_path)
    writers = [start() for _ in range(8)]
    [winner] = [writer for writer in writers if has_begun(writer)]
    assert all(writer.wait(timeout=30) == 2 for writer in writers if writer is not winner)
    ends = {writer.pid: end(writer) for writer in writers}
    assert ends.pop(winner.pid) == (0, "")
    assert all(f"process {winner.pid} on" in said for _, said in ends.values())
    assert set(lines(tmp_path)) == {winner.pid}
    assert records(tmp_path) == [".writer-2"]


def test_a_suspended_writer_that_was_replaced_stops(start, tmp_path):
    first = start()
    assert has_begun(first)
    wait_for(lambda: first.pid in lines(tmp_path))
    first.send_signal(signal.SIGSTOP)
    second = start()
    assert has_begun(second)
    num_lines = lines(tmp_path).count(first.pid)
    first.send_signal(signal.SIGCONT)
    first.wait(timeout=30)
    code, said = end(first)
    assert code == 2
    assert f"process {second.pid} on" in said
    assert said.endswith("took it over, as this process was not heard of for 3.00\u00a0s; this one stops")
    assert end(second) == (0, "")
    assert lines(tmp_path).count(first.pid) <= num_lines + 1, "at most the line that it was about to write"


@pytest.mark.parametrize("is_in_background", [False, True])
def test_a_writer_that_works_on_is_interrupted(tmp_path, is_in_background):
    def work() -> None:
        (tmp_path / ".writer-1").unlink()
        plant(tmp_path).rename(tmp_path / ".writer-2")
        time.sleep(30)  # the interrupt comes after BEAT_S

    before = signal.getsignal(signal.SIGINT)
    if is_in_background:  # as a shell starts `raysnap ... &`
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with (
            interrupted_by_sigterm(),
            pytest.raises(RunLocked, match="worker-7 took it over"),
            hold_run(tmp_path, PACE),
        ):
            work()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_late_taker_leaves_the_writer_alone(tmp_path):
    with hold_run(tmp_path, Pace(1000, 1000)) as lock:
        (tmp_path / ".writer-1").rename(tmp_path / ".writer-7")
        lock._path = tmp_path / ".writer-7"
        assert _succeed(tmp_path, 3, PACE) is None, "it had not seen the later ones"
        assert _succeed(tmp_path, 7, PACE) is None
        lock.check()
        assert records(tmp_path) == [".writer-7"]


def test_a_record_says_who_wrote_last(tmp_path):
    with hold_run(tmp_path, PACE):
        pass
    record = json.loads((tmp_path / ".writer-1").read_text())
    assert record.keys() == asdict(_Writer.here()).keys()
    assert (record["pid"], record["host"], record["has_ended"]) == (os.getpid(), socket.gethostname(), True)


def test_a_folder_that_can_not_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="can't be written: .*; choose another run_dir="), hold_run(tmp_path / "file"):
        pass
