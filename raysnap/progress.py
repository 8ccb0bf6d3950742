"""Progress of a job on stderr: live bars on a terminal; in a log, lines for finished pieces and for long waits."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from raysnap.humanize import seconds_text, shown_line

if TYPE_CHECKING:
    from rich.console import Console

MIN_SHOWN_LEFT_S = 60
TICK_S = 0.5
QUIET_S, QUIET_GROWTH, MAX_QUIET_S = 5.0, 1.5, 60.0
"""A log says that work goes on after so many seconds without a line; each further wait is longer, up to the most."""

OnProgress = Callable[[str, int, int, str], None]
"""Called with a stage, how many of its pieces are done, how many there are, and a note.

The stage `stage/piece` is one piece of a stage while it runs: a bar of its own on a terminal; a log names it only where
nothing else was said for a while.
"""

STAGES = {
    "ray": "Ray",
    "search": "Search",
    "data": "Data",
    "base": "Base",
    "trials": "Fine-tunes",
    "synthesize": "Snapshots",
    "bench": "Searches",
}


def ignore_progress(stage: str, num_done: int, num_all: int, note: str) -> None:
    """Do nothing: the progress of a job that nobody watches."""


@contextmanager
def show_progress(stream: TextIO | None = None, *, silent_s: float = 0.0) -> Iterator[OnProgress]:
    """Show progress until the block ends; yields the function that reports it.

    Users who want errors only, by the level of raysnap's logger, see none.

    Args:
        silent_s: for how many seconds a log shows nothing: what is over by then needs no progress.
    """
    stream = stream or sys.stderr
    if not logging.getLogger("raysnap").isEnabledFor(logging.WARNING):
        yield ignore_progress
    elif stream.isatty():
        with _bars(stream) as show:
            yield show
    else:
        with _lines(stream, silent_s) as show:
            yield show


@contextmanager
def _bars(stream: TextIO) -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        Task,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column
    from rich.text import Text

    class Yielding(TextColumn):
        """Text that is truncated on a narrow terminal, so that bars and numbers stay whole."""

        def render(self, task: Task) -> Text:
            text = super().render(task)
            text.no_wrap, text.overflow = True, "ellipsis"
            return text

    bars: dict[str, TaskID] = {}
    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        Yielding("{task.description:<10}", table_column=Column(min_width=10)),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]left"),
        TimeRemainingColumn(),
        Yielding("[dim]{task.fields[note]}", table_column=Column()),
    )
    console = Console(file=stream)
    with (
        _logs_above(console, stream),
        Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as progress,
    ):

        def show(stage: str, num_done: int, num_all: int, note: str) -> None:
            _, is_piece, piece = stage.partition("/")
            if is_piece and num_done == num_all:
                if stage in bars:
                    progress.remove_task(bars.pop(stage))
                return
            if stage not in bars:
                name = f"  {piece}" if is_piece else STAGES.get(stage, stage)
                bars[stage] = progress.add_task(escape(shown_line(name)), total=num_all, note="")
            progress.update(bars[stage], completed=num_done, total=num_all, note=escape(shown_line(note)))

        yield show


@contextmanager
def _logs_above(console: Console, stream: TextIO) -> Iterator[None]:
    """Print what is logged to the stream above the bars, not into them."""
    from rich.file_proxy import FileProxy

    handlers = [
        handler
        for handler in logging.root.handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is stream
    ]
    for handler in handlers:
        handler.setStream(FileProxy(console, stream))
    try:
        yield
    finally:
        for handler in handlers:
            handler.setStream(stream)


class _Log:
    """Progress as lines: one per finished piece, and while a piece takes long, ever fewer that say what it is at."""

    def __init__(self, stream: TextIO, silent_s: float):
        self._stream = stream
        self._silent_s = silent_s
        self._started_s = self._said_s = time.monotonic()
        self._first: dict[str, tuple[float, int]] = {}
        self._last: dict[str, tuple[int, int]] = {}
        self._now = "starting"
        self._pieces: dict[str, str] = {}
        self._quiet_s = QUIET_S
        self._lock = threading.Lock()

    def show(self, stage: str, num_done: int, num_all: int, note: str) -> None:
        """Print a line where a piece of a stage is finished."""
        name, is_piece, piece = stage.partition("/")
        name = STAGES.get(name, name)
        if is_piece:
            with self._lock:
                self._pieces.pop(stage, None)
                if num_done < num_all:
                    self._pieces[stage] = shown_line(f"{piece} {num_done}/{num_all} {note}".rstrip())
            return
        last_done, last_all = self._last.get(stage, (0, num_all))
        if self._last.get(stage) == (num_done, num_all):
            return
        now_s = time.monotonic()
        if num_done < last_done or num_all != last_all:  # the stage begins again
            del self._first[stage]
        self._last[stage] = num_done, num_all
        first_s, num_before = self._first.setdefault(stage, (now_s, num_done))
        left_s = (now_s - first_s) / max(1, num_done - num_before) * (num_all - num_done)
        left = f"  (about {seconds_text(left_s)} left)" if left_s >= MIN_SHOWN_LEFT_S else ""
        with self._lock:
            self._now = f"{name:<10} {num_done}/{num_all}"
            if now_s - self._started_s >= self._silent_s:
                self._quiet_s = QUIET_S
                self._print(now_s, f"{self._now}  {shown_line(note)}".rstrip() + left)

    def watch(self, ended: threading.Event) -> None:
        """Print a line where nothing was said for a while, until the event is set."""
        while not ended.wait(TICK_S):
            now_s = time.monotonic()
            with self._lock:
                if now_s - self._said_s >= self._quiet_s:
                    self._quiet_s = min(MAX_QUIET_S, QUIET_GROWTH * self._quiet_s)
                    at = f": {next(reversed(self._pieces.values()))}" if self._pieces else ""
                    self._print(now_s, f"{self._now}  still at it{at}")

    def _print(self, now_s: float, text: str) -> None:
        self._said_s = now_s
        print(f"[{now_s - self._started_s:5.0f} s] {text}", file=self._stream, flush=True)


@contextmanager
def _lines(stream: TextIO, silent_s: float) -> Iterator[OnProgress]:
    log, ended = _Log(stream, silent_s), threading.Event()
    watcher = threading.Thread(target=log.watch, args=(ended,), name="raysnap-progress", daemon=True)
    watcher.start()
    try:
        yield log.show
    finally:
        ended.set()
        watcher.join()
