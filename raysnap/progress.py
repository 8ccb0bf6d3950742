"""Progress of a job on stderr: live bars on a terminal, one line per finished piece in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from raysnap.humanize import seconds_text, shown_line

if TYPE_CHECKING:
    from rich.console import Console

MIN_SHOWN_LEFT_S = 60

OnProgress = Callable[[str, int, int, str], None]
"""Called with a stage, how many of its pieces are done, how many there are, and a note.

The stage `stage/piece` is one piece of a stage while it runs: a bar of its own on a terminal, nothing in a log.
"""

STAGES = {
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
def show_progress(stream: TextIO | None = None) -> Iterator[OnProgress]:
    """Show progress until the block ends; yields the function that reports it.

    Who wants errors only, by the level of raysnap's logger, sees none.
    """
    stream = stream or sys.stderr
    if not logging.getLogger("raysnap").isEnabledFor(logging.WARNING):
        yield ignore_progress
    elif stream.isatty():
        with _bars(stream) as show:
            yield show
    else:
        yield _lines(stream)


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


def _lines(stream: TextIO) -> OnProgress:
    started_s = time.monotonic()
    first: dict[str, tuple[float, int]] = {}
    last_done: dict[str, int] = {}

    def show(stage: str, num_done: int, num_all: int, note: str) -> None:
        if last_done.get(stage) == num_done or "/" in stage:
            return
        last_done[stage] = num_done
        now_s = time.monotonic()
        first_s, num_before = first.setdefault(stage, (now_s, num_done))
        left_s = (now_s - first_s) / max(1, num_done - num_before) * (num_all - num_done)
        left = f"  (about {seconds_text(left_s)} left)" if left_s >= MIN_SHOWN_LEFT_S else ""
        line = f"[{now_s - started_s:5.0f} s] {STAGES.get(stage, stage):<10} {num_done}/{num_all}  {shown_line(note)}"
        print(
            line.rstrip() + left,
            file=stream,
            flush=True,
        )

    return show
