"""How commands print: results on stdout, failures on stderr; and the arguments that several commands share."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

SOME_FAILED = 1

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout and nothing else.")]
DataDir = Annotated[Path, typer.Option("--data-dir", help="Folder of the named datasets.")]
StoreDir = Annotated[Path, typer.Option("--store", help="Folder of the model store.")]


MAX_ROWS = 20
MAX_NAMES = 2
ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Override keys of the file: train.epochs=3.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Finish what an earlier run left, repeat nothing finished.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would run, and write nothing.")]


def print_result(shown: Any) -> None:
    """Prints text or a rich table on stdout; in a pipe, lines are not cut at a terminal's width."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 200
    console = Console(file=sys.stdout, width=width, highlight=False, soft_wrap=isinstance(shown, str), markup=False)
    with console.capture() as captured:
        console.print(shown)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def print_failures(failures: list[dict[str, str]]) -> None:
    """Prints a line per failure on stderr: the values of each, the reason last."""
    for failure in failures:
        print(f"raysnap: {': '.join(str(value) for value in failure.values())}", file=sys.stderr)


def print_json(document: Any) -> None:
    """Prints one JSON document on stdout; a dataclass becomes an object."""
    if is_dataclass(document) and not isinstance(document, type):
        document = asdict(document)
    sys.stdout.write(json.dumps(_finite(document), indent=2, allow_nan=False, default=str) + "\n")


def _finite(value: Any) -> Any:
    """The document with NaN and infinity as null, which JSON can say."""
    if isinstance(value, dict):
        return {str(key): _finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def simple_table(columns: Sequence[str], rows: Iterable[Sequence[object]], numeric: Sequence[str] = ()) -> Table:
    """A borderless table with a bold header, if any column has a name; `numeric` columns are aligned to the right."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0), show_header=any(columns))
    for column in columns:
        stays_whole = column in ("id", *numeric)  # on a narrow terminal the other columns give way
        justify = "right" if column in numeric else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=stays_whole)
    for row in rows:
        table.add_row(*("–" if value is None else escape(str(value)) for value in row))
    return table
