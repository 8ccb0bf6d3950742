"""How commands print: results on stdout, failures on stderr; and the arguments that several commands share."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from rich.table import Table

from raysnap.errors import UsageError
from raysnap.humanize import read_duration, shown, shown_line

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from raysnap.config.folders import StorePath

    StoreArgument: TypeAlias = StorePath
else:
    StoreArgument = Path  # typer takes no unions; `store_place` makes the value, whatever is said here

SOME_FAILED = 1  # exit code: the command did its job, but parts of it failed
MAX_ROWS = 20  # of a table, before it is cut or summed up
MAX_NAMES = 2  # of snapshots in one cell


def any_path(given: str | Path) -> Path:
    """Return the path that an argument gives, `~` expanded, and refuse an address."""
    from raysnap.config.folders import address_fault, refusing  # pydantic would slow down `--help`

    return Path(refusing(address_fault)(given))


def name_or_path(given: str) -> str:
    """Return the name or path that an argument gives, `~` expanded, and refuse an address."""
    from raysnap.config.folders import address_fault, refusing

    return str(refusing(address_fault)(given))


def duration(given: str) -> float:
    """Return the seconds of the time that an argument gives."""
    try:
        return read_duration(given)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def kept_path(given: str | Path) -> Path:
    """Return the path that an argument gives of a folder that outlives the command, and refuse what can't be one."""
    from raysnap.config.folders import folder_fault, refusing

    return Path(refusing(folder_fault)(given))


def store_place(given: str | Path) -> StorePath:
    """Return where the store is that an argument gives, a folder or an address in a bucket."""
    from raysnap.config.folders import kept_store

    try:
        return kept_store(given)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None


def run_place(given: str | Path) -> StorePath:
    """Return where the run is that an argument gives, a folder, a file or an address in a bucket."""
    from raysnap.config.folders import store_path

    try:
        return store_path(given)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None


def request_lines() -> list[str]:
    """Return what this process asked of each bucket that a store is in, a line each; none where it opened none."""
    client = sys.modules.get("raysnap.store.backends.client")
    return list(client.request_lines()) if client is not None else []


AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document on stdout.")]
DataDir = Annotated[
    Path,
    typer.Option("--data-dir", metavar="DIR", parser=any_path, help="Folder in which datasets are looked up by name."),
]
StoreDir = Annotated[
    StoreArgument,
    typer.Option(
        "--store", metavar="STORE", parser=store_place, help="The model store: a folder, or s3://bucket/prefix."
    ),
]
ConfigPath = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        parser=any_path,
        help="Configuration file (YAML), or the name of one that ships with raysnap.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Change keys of the configuration, for example train.epochs=3."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an earlier run; finished work is not repeated.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would run and what it would need; write nothing.")]


def print_result(result: RenderableType) -> None:
    """Print text or a rich table on stdout, brackets and all: rich's markup is off.

    In a pipe, lines are not cut at a terminal's width. What names of files and classes hold is printed as `shown`.
    """
    from rich.console import Console, ConsoleOptions
    from rich.segment import Segment

    class Plain(Console):
        """A console that obeys nothing in the text that it is given: before it is laid out, and once more after."""

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(shown(text), **options)

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(shown(segment.text), segment.style)

    width = None if sys.stdout.isatty() else 200
    console = Plain(file=sys.stdout, width=width, highlight=False, soft_wrap=isinstance(result, str), markup=False)
    with console.capture() as captured:
        console.print(result)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def print_text(text: str) -> None:
    """Print text on stdout as it is, to the last line end; what would act on a terminal is written out."""
    sys.stdout.write(shown(text))


def print_failures(failures: Iterable[Mapping[str, str]]) -> None:
    """Print one line per failure on stderr: its values in order, the reason last."""
    for failure in failures:
        print_message(": ".join(str(value) for value in failure.values()))


def print_message(message: str) -> None:
    """Print one line on stderr, whatever the message quotes."""
    print(f"raysnap: {shown_line(message)}", file=sys.stderr)


class LogFormatter(logging.Formatter):
    """Records in one line each, whatever they quote; a traceback follows in lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """Return the record's line."""
        return shown_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Return the lines of a traceback."""
        return shown(super().formatException(ei))


def print_json(document: Any) -> None:
    """Print one JSON document on stdout; a dataclass becomes an object."""
    if is_dataclass(document) and not isinstance(document, type):
        document = asdict(document)
    sys.stdout.write(json.dumps(_finite(document), indent=2, allow_nan=False, default=str) + "\n")


def _finite(value: Any) -> Any:
    """Return the document with null in place of NaN and infinity, which JSON has no spelling for."""
    if isinstance(value, dict):
        return {str(key): _finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def simple_table(columns: Sequence[str], rows: Iterable[Sequence[object]], numeric: Sequence[str] = ()) -> Table:
    """Return a borderless table; the header is bold and left out if no column has a name.

    Args:
        columns: the headings.
        rows: one value per column; None is shown as an en dash.
        numeric: the headings of columns that are aligned to the right.
    """
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0), show_header=any(columns))
    for column in columns:
        is_numeric = column in numeric
        keeps_width = is_numeric or column == "id"  # on a narrow terminal the other columns give way
        table.add_column(column, justify="right" if is_numeric else "left", overflow="fold", no_wrap=keeps_width)
    for row in rows:
        table.add_row(*("–" if value is None else shown_line(str(value)) for value in row))
    return table
