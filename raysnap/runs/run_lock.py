"""One writer per run directory: a file that names the writer, and changes every few seconds while that lives.

It needs no file locks, which shared file systems often lack, and no clocks that agree. The writers of a directory are
numbered: `.writer-7` has the record of the seventh. A process becomes the writer by creating the next number, in which
only one can succeed. It may do so once the latest writer has ended, is known to be dead or has not changed its record
for as long as the process watched it. Then it removes the earlier files: a writer that was only suspended finds its own
gone and stops. No process renames or writes the file of another, so one that wakes up late does no harm; and the latest
file is never removed, so that no number is used twice.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from raysnap.errors import ConfigError, RunLocked
from raysnap.humanize import seconds_text
from raysnap.system import utc_timestamp

POLL_S = 0.25

_NAME = re.compile(r"\.writer-([1-9][0-9]{0,17})")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pace:
    """How often a writer changes its record, and how long one that doesn't is waited for."""

    beat_s: float = 3.0
    stale_s: float = 30.0


PACE = Pace()


@dataclass(frozen=True)
class _Writer:
    """The record of a writer.

    Attributes:
        machine: identifies the boot and the container in which `pid` is valid; None where it is unknown.
        started: when the process started, in the kernel's units, so that a reused `pid` is noticed.
        beat: changes while the process lives.
    """

    token: str
    host: str
    machine: str | None
    pid: int
    started: str | None
    since: str
    beat: int = 0
    has_ended: bool = False

    @classmethod
    def here(cls) -> _Writer:
        pid = os.getpid()
        return cls(secrets.token_hex(8), socket.gethostname(), _machine(), pid, _start_of(pid), utc_timestamp())

    @classmethod
    def read(cls, content: bytes) -> _Writer | None:
        """Return the writer of a record; None where it is not whole, as the file of a new writer may be."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError):
            return None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def as_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @property
    def is_dead(self) -> bool:
        """Whether its process is known to be gone, which only its own machine can tell."""
        if self.machine is None or self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # another user's
        started = _start_of(self.pid)
        return started is not None and started != self.started


class RunLock:
    """The right to write in a run directory, as long as the `with` block of `hold_run` lasts."""

    def __init__(self, run_dir: Path, path: Path, writer: _Writer, pace: Pace):
        self.run_dir = run_dir
        self._path = path
        self._writer = writer
        self._pace = pace
        self._released = threading.Event()
        self._noticing = threading.Lock()  # a loss interrupts once
        self._beating = threading.Thread(target=self._beat, name="raysnap-run-lock", daemon=True)
        self._main = threading.main_thread() if threading.current_thread() is threading.main_thread() else None
        self.is_lost = False

    def check(self) -> None:
        """Check that no other process has taken the directory over.

        Raises:
            KeyboardInterrupt: one has. Ray Tune swallows errors, but not this; `hold_run` turns it into a RunLocked.
        """
        if self.is_lost or not self._is_ours():
            with self._noticing:
                self.is_lost = True
            time.sleep(0)  # takes the signal, if there is one, in place of a second interrupt
            raise KeyboardInterrupt

    def loss(self) -> RunLocked:
        """Return the error of a writer that was replaced."""
        with suppress(OSError):
            latest = _latest(self.run_dir)
            if latest is not None:
                other = _Writer.read(_read(latest[1]) or b"") or "another process"
                return RunLocked(
                    f"run_dir {self.run_dir}: {other} took it over, as this process was not heard of for "
                    f"{seconds_text(self._pace.stale_s)}; this one stops"
                )
        return RunLocked(f"run_dir {self.run_dir}: {self._path.name}, the record of this process, is gone; it stops")

    def _is_ours(self) -> bool:
        """Whether the record is still there; opening it by its name makes a network file system look."""
        found = _Writer.read(_read(self._path) or b"")
        return found is not None and found.token == self._writer.token

    def _write(self, writer: _Writer) -> None:
        with self._path.open("r+b") as file:
            file.write(writer.as_bytes())  # never shorter than the record before

    def _beat(self) -> None:
        """Change the record every few seconds; interrupt the job once the record is gone."""
        while not self._released.wait(self._pace.beat_s):
            try:
                if not self._is_ours():
                    self._interrupt()
                    return
                self._writer = replace(self._writer, beat=self._writer.beat + 1)
                self._write(self._writer)
            except OSError as error:
                logger.warning("%s: can't be written: %s; trying again", self._path, error.strerror or error)

    def _interrupt(self) -> None:
        """Interrupt the job in the main thread, unless it has noticed; in another, its next check does."""
        with self._noticing:
            # A shell makes what it starts in the background ignore SIGINT; the command line handles SIGTERM, too.
            handled = [number for number in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(number))]
            if handled and not self.is_lost and not self._released.is_set() and self._main is not None:
                signal.pthread_kill(self._main.ident or 0, handled[0])
            self.is_lost = True

    def _release(self) -> None:
        self._released.set()
        if self._beating.is_alive():
            self._beating.join()
        with suppress(OSError):
            if not self.is_lost and self._is_ours():
                self._write(replace(self._writer, has_ended=True))


@contextmanager
def hold_run(run_dir: Path, pace: Pace = PACE) -> Iterator[RunLock]:
    """Be the only writer of the run directory, which is created if needed, until the block ends.

    A writer that has ended or died is succeeded at once; one that died on another machine, after `pace.stale_s`. If the
    block fails before it writes anything, a folder that was created for it is removed.

    Raises:
        RunLocked: another process writes there, or took over because this one had been suspended for too long.
        ConfigError: the folder can't be written.
    """
    made = [path for path in (run_dir, *run_dir.parents) if not path.exists()]
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = _acquire(run_dir, pace)
    except OSError as error:
        raise ConfigError(
            f"run_dir {run_dir}: can't be written: {error.strerror or error}; choose another run_dir="
        ) from None
    try:
        lock._beating.start()
        yield lock
        lock.check()
    except BaseException as error:
        if lock.is_lost:
            raise lock.loss() from error
        lock._release()
        _remove_unused(lock._path, made)
        raise
    finally:
        lock._release()


def _remove_unused(record: Path, made: list[Path]) -> None:
    """Remove a record and the folders that were made for it, if nothing else is there."""
    with suppress(OSError):
        if made and [*record.parent.iterdir()] == [record]:
            record.unlink()
            for folder in made:
                folder.rmdir()


def _acquire(run_dir: Path, pace: Pace) -> RunLock:
    """Return the lock once the latest writer may be succeeded; raise RunLocked once it is seen to live."""
    watched: tuple[int, bytes] | None = None
    watched_s, has_told = time.monotonic(), False
    while True:
        latest = _latest(run_dir)
        number, content = (0, b"") if latest is None else (latest[0], _read(latest[1]))
        if content is None:
            time.sleep(POLL_S)  # the folder was listed before the file was removed
            continue
        writer = _Writer.read(content)
        still_s = time.monotonic() - watched_s
        if watched is None or watched[0] != number:
            watched, watched_s, still_s = (number, content), time.monotonic(), 0.0
        elif content != watched[1] and not (writer and writer.has_ended):
            raise RunLocked(_locked_text(run_dir, writer))
        if latest is None or still_s >= pace.stale_s or (writer and (writer.has_ended or writer.is_dead)):
            lock = _succeed(run_dir, number + 1, pace)
            if lock is not None:
                return lock
            continue
        if still_s > 2 * pace.beat_s and not has_told:
            has_told = True
            logger.warning(
                "run_dir %s: %s wrote here but is not heard of now; taking over in %s unless it is",
                run_dir, writer or "another process", seconds_text(pace.stale_s - still_s),
            )  # fmt: skip
        time.sleep(POLL_S)


def _succeed(run_dir: Path, number: int, pace: Pace) -> RunLock | None:
    """Become the writer of this number; return None where another process is that or a later one."""
    path, writer = run_dir / f".writer-{number}", _Writer.here()
    try:
        with path.open("xb") as file, _removed_on_error(path):
            file.write(writer.as_bytes())
            file.flush()
    except FileExistsError:
        return None
    earlier = {other: found for other, found in _numbered(run_dir).items() if other != number}
    if any(other > number for other in earlier):  # the listing that led to this number was out of date
        path.unlink()
        return None
    for _, found in sorted(earlier.items()):
        found.unlink(missing_ok=True)
    return RunLock(run_dir, path, writer, pace)


@contextmanager
def _removed_on_error(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _numbered(run_dir: Path) -> dict[int, Path]:
    """Return the files of the directory's writers by their numbers."""
    matches = ((_NAME.fullmatch(path.name), path) for path in run_dir.iterdir())
    return {int(match[1]): path for match, path in matches if match}


def _latest(run_dir: Path) -> tuple[int, Path] | None:
    return max(_numbered(run_dir).items(), default=None)


def _read(path: Path) -> bytes | None:
    """Return what the file holds; None where it is gone."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _locked_text(run_dir: Path, writer: _Writer | None) -> str:
    who = f"{writer} has been writing to it since {writer.since}" if writer else "another process is writing to it"
    return f"run_dir {run_dir}: {who}; wait until it has ended, or stop it"


def _machine() -> str | None:
    """Return what identifies this boot of this machine and, in a container, the container's process numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _start_of(pid: int) -> str | None:
    """Return when the process started, in clock ticks since the boot; "" if it has died, None where that is hidden."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (OSError, ValueError):
        return None
    return "" if state in (b"Z", b"X") else fields[18].decode()
