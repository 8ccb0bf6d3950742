"""Decode image files into slots of one open file: with threads, or with processes on many CPUs or beside other work.

Pillow releases Python's global lock while it decodes and resizes, but a sixteenth of an image's time needs the lock, so
threads keep only a few CPUs busy, and fewer where others need it. A worker process is this module, run by name: it
imports neither torch nor ray and starts in a tenth of a second, writes pixels into the file that it inherits, and
answers each batch of jobs with one line. Where a worker dies, its batch is decoded again image by image; an image at
which two workers died is bad.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import Any, NamedTuple, TypeAlias
from warnings import catch_warnings, simplefilter

import numpy as np
from PIL import Image

from raysnap.atomic import write_all_at
from raysnap.datasets.image_file import read_image, resize
from raysnap.datasets.resizing import Resizing, kept_range
from raysnap.errors import DataError
from raysnap.system import num_cpus

MAX_THREADS = 4
MAX_PROCESSES = 64
MIN_JOBS_PER_PROCESS = 64
BATCH_LENGTH = 16
MAX_DEATHS_PER_IMAGE = 2
MAX_DEATHS = 16

log = logging.getLogger(__name__)


class DecodeJob(NamedTuple):
    """One image file, and the offset of its slot in the open file, in bytes."""

    path: str
    offset: int


Shape: TypeAlias = tuple[int, int]
Outcome: TypeAlias = Shape | str
Batch: TypeAlias = list[DecodeJob]


def decode_into(
    file: int,
    jobs: Sequence[DecodeJob],
    resizing: Resizing,
    is_done: Callable[[DecodeJob], bool],
    *,
    is_busy: bool = False,
) -> Generator[tuple[DecodeJob, Outcome], None, None]:
    """Yield each job once it is done, with the height and width of its resized image, or one line on why it is bad.

    A slot gets the central square of the image, or what there is of it, and one more row or column, plane by plane. A
    job is skipped where `is_done` says, just before its turn, that another process did it.

    Args:
        is_busy: whether other threads of this process run Python meanwhile, for whose lock threads would wait.

    Raises:
        OSError: the file can't be written.
        DataError: worker processes can't be started or keep dying.
    """
    num_processes = min(num_cpus(), MAX_PROCESSES, len(jobs) // MIN_JOBS_PER_PROCESS)
    if num_processes > (0 if is_busy else MAX_THREADS):
        return _Crew(file, jobs, resizing, is_done).decode(num_processes)
    return _by_threads(file, jobs, resizing, is_done)


def _decode_one(file: int, job: DecodeJob, resizing: Resizing) -> Outcome:
    try:
        image = resize(read_image(Path(job.path)), resizing)
    except DataError as error:
        message = str(error)
        return message if message.startswith(job.path) else f"{job.path}: {message}"
    write_all_at(file, _central_planes(image, resizing), job.offset)
    return image.height, image.width


def _central_planes(image: Image.Image, resizing: Resizing) -> np.ndarray:
    """Return the kept part of a resized image, uint8 `[3, rows, columns]`."""
    top, num_rows = kept_range(image.height, resizing.kept_size)
    left, num_columns = kept_range(image.width, resizing.kept_size)
    part_HW3 = np.asarray(image.crop((left, top, left + num_columns, top + num_rows)))
    return np.ascontiguousarray(part_HW3.transpose(2, 0, 1))


def _batches(jobs: Sequence[DecodeJob]) -> list[Batch]:
    return [list(jobs[start : start + BATCH_LENGTH]) for start in range(0, len(jobs), BATCH_LENGTH)]


def _by_threads(
    file: int, jobs: Sequence[DecodeJob], resizing: Resizing, is_done: Callable[[DecodeJob], bool]
) -> Generator[tuple[DecodeJob, Outcome], None, None]:
    def decode(batch: Batch) -> list[tuple[DecodeJob, Outcome]]:
        return [(job, _decode_one(file, job, resizing)) for job in batch if not is_done(job)]

    pool = ThreadPoolExecutor(min(num_cpus(), MAX_THREADS))
    try:
        with catch_warnings():
            simplefilter("ignore")
            for done in pool.map(decode, _batches(jobs)):
                yield from done
    finally:
        pool.shutdown(cancel_futures=True)


class _Worker:
    """A process that decodes, and the batch it is working on; its first answer, to no jobs, says that it is up."""

    def __init__(self, file: int, resizing: Resizing):
        path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", __spec__.name, str(file), json.dumps(resizing)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[file],
            env=os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
            process_group=0,  # Ctrl-C goes to the parent, which ends this one
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.answers = self.process.stdout
        self._questions = self.process.stdin
        self.batch: Batch = []
        self.is_up = False

    def give(self, batch: Batch) -> None:
        """Send the process its next batch."""
        self.batch = batch
        with suppress(BrokenPipeError):  # if it died, the end of its answers says so next
            self._questions.write(json.dumps(batch).encode() + b"\n")
            self._questions.flush()

    def take(self) -> list[Outcome] | None:
        """Read the outcomes of its batch; None where the process died.

        Raises:
            OSError: the process could not write the pixels.
        """
        line = self.answers.readline()
        if not line.endswith(b"\n"):
            return None
        self.is_up = True
        answer = json.loads(line)
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        return [outcome if isinstance(outcome, str) else tuple(outcome) for outcome in answer]

    def end(self) -> str:
        """Kill the process if it is still running, and say in words how it ended."""
        self.process.kill()
        for pipe in (self._questions, self.answers):
            with suppress(BrokenPipeError):
                pipe.close()
        code = self.process.wait()
        return f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"


class _Crew:
    """The processes that work on a list of jobs; one that dies is replaced and its batch decoded again."""

    def __init__(self, file: int, jobs: Sequence[DecodeJob], resizing: Resizing, is_done: Callable[[DecodeJob], bool]):
        self._file = file
        self._resizing = resizing
        self._is_done = is_done
        self._waiting = deque(_batches(jobs))
        self._deaths = Counter[DecodeJob]()
        self._num_deaths = 0
        self._selector = DefaultSelector()

    def decode(self, num_processes: int) -> Generator[tuple[DecodeJob, Outcome], None, None]:
        """Yield each job once it is done."""
        try:
            for _ in range(num_processes):
                self._start_worker()
            while self._selector.get_map():
                for key, _ in self._selector.select():
                    worker = key.data
                    outcomes = worker.take()
                    if outcomes is None:
                        yield from self._replace(worker)
                    else:
                        yield from zip(worker.batch, outcomes, strict=True)
                        self._give_next(worker)
        finally:
            for key in list(self._selector.get_map().values()):
                key.data.end()
            self._selector.close()

    def _start_worker(self) -> None:
        worker = _Worker(self._file, self._resizing)
        self._selector.register(worker.answers, EVENT_READ, worker)

    def _give_next(self, worker: _Worker) -> None:
        while self._waiting:
            batch = [job for job in self._waiting.popleft() if not self._is_done(job)]
            if batch:
                worker.give(batch)
                return
        self._selector.unregister(worker.answers)
        worker.end()

    def _replace(self, worker: _Worker) -> Iterator[tuple[DecodeJob, Outcome]]:
        """Queue a dead worker's images again, one by one; yield those that ended a process before as bad."""
        self._selector.unregister(worker.answers)
        how = worker.end()
        self._num_deaths += 1
        if not worker.is_up or self._num_deaths > MAX_DEATHS:
            when = f"{self._num_deaths} that died at work" if worker.is_up else "one that died at the start"
            raise DataError(f"images: expected processes that decode them, found {when} ({how}); check for free memory")
        log.warning("a process that decodes images died (%s); trying its images again", how)
        self._deaths.update(worker.batch)
        for job in worker.batch:
            if self._deaths[job] < MAX_DEATHS_PER_IMAGE:
                self._waiting.append([job])
            else:
                yield job, f"{job.path}: expected an image, found one that crashes the decoder ({how})"
        self._start_worker()


def _serve(file: int, resizing: Resizing) -> None:
    """Serve as a worker: answer each line of jobs with a line of outcomes or an error number, until end of file."""
    simplefilter("ignore")
    # What a C library prints must not mix with the answers.
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with os.fdopen(answers, "wb", buffering=0) as pipe, suppress(BrokenPipeError):
        pipe.write(b"[]\n")
        for line in sys.stdin.buffer:
            answer: Any
            try:
                answer = [_decode_one(file, DecodeJob(*job), resizing) for job in json.loads(line)]
            except OSError as error:
                answer = error.errno
            pipe.write(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    _serve(int(sys.argv[1]), Resizing(*json.loads(sys.argv[2])))
