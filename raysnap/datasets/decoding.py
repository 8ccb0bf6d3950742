"""Image files decoded into the slots of one open file: by threads, and by processes where many meet many CPUs.

Pillow lets go of Python's lock while it decodes and resizes, and about a sixteenth of an image's time passes under the
lock: threads keep a few CPUs busy and no more. A process is this module, run by name: it imports neither torch nor ray
and is there in a tenth of a second, writes pixels into the file that it inherits, and answers each run of jobs with one
line. Where one dies, its run is done again image by image, and an image at which two died is bad.
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
from typing import NamedTuple
from warnings import catch_warnings, simplefilter

import numpy as np
from PIL import Image

from raysnap.atomic import write_all_at
from raysnap.datasets.image_file import read_image, resize_shorter_side
from raysnap.errors import DataError
from raysnap.system import num_cpus

MAX_THREADS = 4
MAX_PROCESSES = 64
MIN_JOBS_PER_PROCESS = 64
RUN_LENGTH = 16
MAX_DEATHS_PER_IMAGE = 2
MAX_DEATHS = 16

log = logging.getLogger(__name__)


class Job(NamedTuple):
    """One image file and where in the open file its pixels go, in bytes."""

    path: str
    offset: int


Shape = tuple[int, int]
Outcome = Shape | str
Run = list[Job]


def decode_into(
    file: int, jobs: Sequence[Job], resize_size: int, is_done: Callable[[Job], bool]
) -> Generator[tuple[Job, Outcome], None, None]:
    """Each job as it is done, with its resized image's height and width, or in one line why the image is bad.

    A slot gets the central square of the image and one row or column more, plane by plane. A job is left out when
    `is_done` says, shortly before its turn, that somebody else did it.

    Raises:
        OSError: the file can't be written.
        DataError: processes can't be started or die again and again.
    """
    num_processes = min(num_cpus(), MAX_PROCESSES, len(jobs) // MIN_JOBS_PER_PROCESS)
    if num_processes > MAX_THREADS:
        return _Crew(file, jobs, resize_size, is_done).decode(num_processes)
    return _by_threads(file, jobs, resize_size, is_done)


def kept(length: int, resize_size: int) -> tuple[int, int]:
    """Where the kept part of a side begins, and its length: the centre, and one pixel more for odd crops."""
    first = (length - resize_size) // 2
    return first, min(length - first, resize_size + 1)


def _decode_one(file: int, job: Job, resize_size: int) -> Outcome:
    try:
        image = resize_shorter_side(read_image(Path(job.path)), resize_size)
    except DataError as error:
        message = str(error)
        return message if message.startswith(job.path) else f"{job.path}: {message}"
    write_all_at(file, _central_planes(image, resize_size), job.offset)
    return image.height, image.width


def _central_planes(image: Image.Image, resize_size: int) -> np.ndarray:
    """The kept part of a resized image, uint8 `[3, rows, columns]`."""
    top, num_rows = kept(image.height, resize_size)
    left, num_columns = kept(image.width, resize_size)
    part_HW3 = np.asarray(image.crop((left, top, left + num_columns, top + num_rows)))
    return np.ascontiguousarray(part_HW3.transpose(2, 0, 1))


def _runs(jobs: Sequence[Job]) -> list[Run]:
    return [list(jobs[start : start + RUN_LENGTH]) for start in range(0, len(jobs), RUN_LENGTH)]


def _by_threads(
    file: int, jobs: Sequence[Job], resize_size: int, is_done: Callable[[Job], bool]
) -> Generator[tuple[Job, Outcome], None, None]:
    def decode(run: Run) -> list[tuple[Job, Outcome]]:
        return [(job, _decode_one(file, job, resize_size)) for job in run if not is_done(job)]

    pool = ThreadPoolExecutor(min(num_cpus(), MAX_THREADS))
    try:
        with catch_warnings():
            simplefilter("ignore")
            for done in pool.map(decode, _runs(jobs)):
                yield from done
    finally:
        pool.shutdown(cancel_futures=True)


class _Worker:
    """A process that decodes, and the run that it is at; its first answer, to no jobs, says that it is up."""

    def __init__(self, file: int, resize_size: int):
        path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", __spec__.name, str(file), str(resize_size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[file],
            env=os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
            process_group=0,  # Ctrl-C is for the process that waits, which ends this one
        )
        self.run: Run = []
        self.is_up = False

    def give(self, run: Run) -> None:
        self.run = run
        with suppress(BrokenPipeError):  # where it died, the end of its answers says so next
            self.process.stdin.write(json.dumps(run).encode() + b"\n")
            self.process.stdin.flush()

    def take(self) -> list[Outcome] | None:
        """Its answer; None when it died."""
        line = self.process.stdout.readline()
        if not line.endswith(b"\n"):
            return None
        self.is_up = True
        answer = json.loads(line)
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        return [outcome if isinstance(outcome, str) else tuple(outcome) for outcome in answer]

    def end(self) -> str:
        """Ends the process, where it is still there, and says in words how it ended."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(BrokenPipeError):
                pipe.close()
        code = self.process.wait()
        return f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"


class _Crew:
    """The processes at work on a list of jobs; whoever dies is replaced and its run done again."""

    def __init__(self, file: int, jobs: Sequence[Job], resize_size: int, is_done: Callable[[Job], bool]):
        self._file = file
        self._resize_size = resize_size
        self._is_done = is_done
        self._waiting = deque(_runs(jobs))
        self._deaths = Counter[Job]()
        self._num_deaths = 0
        self._selector = DefaultSelector()

    def decode(self, num_processes: int) -> Generator[tuple[Job, Outcome], None, None]:
        """Each job as it is done."""
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
                        yield from zip(worker.run, outcomes, strict=True)
                        self._give_next(worker)
        finally:
            for key in list(self._selector.get_map().values()):
                key.data.end()
            self._selector.close()

    def _start_worker(self) -> None:
        worker = _Worker(self._file, self._resize_size)
        self._selector.register(worker.process.stdout, EVENT_READ, worker)

    def _give_next(self, worker: _Worker) -> None:
        while self._waiting:
            run = [job for job in self._waiting.popleft() if not self._is_done(job)]
            if run:
                worker.give(run)
                return
        self._selector.unregister(worker.process.stdout)
        worker.end()

    def _replace(self, worker: _Worker) -> Iterator[tuple[Job, Outcome]]:
        """Puts a dead worker's images back in line, one by one; those that ended processes before are bad."""
        self._selector.unregister(worker.process.stdout)
        how = worker.end()
        self._num_deaths += 1
        if not worker.is_up or self._num_deaths > MAX_DEATHS:
            when = f"{self._num_deaths} that ended at work" if worker.is_up else "one that ended as it began"
            raise DataError(
                f"images: expected processes that decode them, found {when} ({how}); is there enough free memory?"
            )
        log.warning("a process that decodes images ended (%s); its images are tried again", how)
        self._deaths.update(worker.run)
        for job in worker.run:
            if self._deaths[job] < MAX_DEATHS_PER_IMAGE:
                self._waiting.append([job])
            else:
                yield job, f"{job.path}: expected an image, found one whose decoding ends its process ({how})"
        self._start_worker()


def _serve(file: int, resize_size: int) -> None:
    """What a worker does: one line of jobs in, one line of outcomes or an error number out, until the end of file."""
    simplefilter("ignore")
    # What a C library prints must not get between the answers.
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with os.fdopen(answers, "wb", buffering=0) as pipe, suppress(BrokenPipeError):
        pipe.write(b"[]\n")
        for line in sys.stdin.buffer:
            try:
                answer = [_decode_one(file, Job(*job), resize_size) for job in json.loads(line)]
            except OSError as error:
                answer = error.errno
            pipe.write(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
