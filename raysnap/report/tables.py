"""Tables of a report: the same rows as cells of the page, as CSV with raw values, and as Markdown."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from raysnap.humanize import (
    NOTHING,
    bytes_text,
    count_text,
    flops_text,
    is_known,
    ratio_text,
    score_text,
    seconds_text,
    share_text,
    shown,
)

_FORMATTERS = {
    "seconds": seconds_text,
    "bytes": bytes_text,
    "count": count_text,
    "score": score_text,
    "flops": flops_text,
    "ratio": ratio_text,
    "share": share_text,
    "number": lambda value: f"{value:.6g}" if is_known(value) else NOTHING,
}
_FORMULA = re.compile(r"^[=+\-@\t\r]")

Chip: TypeAlias = tuple[str, str]
"""A small label in a cell: its text and its CSS class."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: of its values in the rows.
        kind: `text`, `name` (a long word that may be broken), `span` (a short text that stays in one line) or a key of
            `_FORMATTERS`, a kind of number.
        hint: shown when the pointer is over the heading.
        is_on_page: whether the page shows it; the files hold every column.
    """

    key: str
    heading: str
    kind: str = "text"
    hint: str = ""
    is_on_page: bool = True

    @property
    def is_number(self) -> bool:
        """Whether its values are numbers."""
        return self.kind in _FORMATTERS

    def text(self, value: Any) -> str:
        """Format a value."""
        if self.is_number:
            return _FORMATTERS[self.kind](value)
        return NOTHING if value is None or value == "" else str(value)


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        values: raw values by column.
        chips, bars, hints: by column: labels beside the value, the length of a bar (0 to 1), a tooltip.
        css: CSS class of the row.
        attributes: data attributes of the row.
    """

    values: dict[str, Any]
    chips: dict[str, tuple[Chip, ...]] = field(default_factory=dict)
    bars: dict[str, float] = field(default_factory=dict)
    hints: dict[str, str] = field(default_factory=dict)
    css: str = ""
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DataTable:
    """A table.

    Attributes:
        name: of its files, without ending.
        num_shown: rows that the page shows before "Show all" is clicked; None is all.
        statuses: (status, number of rows) to filter by.
        is_filtered: whether the page offers a filter.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    num_shown: int | None = None
    statuses: tuple[tuple[str, int], ...] = ()
    is_filtered: bool = False

    def to_csv(self) -> str:
        """Return comma-separated values: raw numbers in base units, and text that no spreadsheet runs as a formula."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([_plain(column.key) for column in self.columns])
        for row in self.rows:
            writer.writerow([_raw(row.values.get(column.key)) for column in self.columns])
        return out.getvalue()

    def to_markdown(self) -> str:
        """Return a GitHub-flavoured Markdown table under its caption."""
        lines = [
            [_escaped(column.heading) for column in self.columns],
            ["---:" if column.is_number else ":---" for column in self.columns],
            *([self._markdown_cell(row, column) for column in self.columns] for row in self.rows),
        ]
        return "\n".join([_escaped(self.caption), "", *(f"| {' | '.join(line)} |" for line in lines), ""])

    def _markdown_cell(self, row: Row, column: Column) -> str:
        chips = "".join(f" ({text})" for text, _ in row.chips.get(column.key, ()))
        return _escaped(column.text(row.values.get(column.key)) + chips)


def without_empty(columns: Sequence[Column], rows: Sequence[Row]) -> tuple[Column, ...]:
    """Return the columns in which any row has a value."""
    return tuple(column for column in columns if any(row.values.get(column.key) not in (None, "") for row in rows))


def _raw(value: Any) -> str:
    if value is None:
        return ""
    return repr(value) if isinstance(value, (int, float)) else _plain(str(value))


def _plain(text: str) -> str:
    text = shown(text)
    return f"'{text}" if _FORMULA.match(text) else text


def _escaped(text: str) -> str:
    """Return the text in one line, with all Markdown and HTML in it escaped."""
    text = html.escape(" ".join(shown(text).split()), quote=False)
    return re.sub(r"([\\`*\[\]|~#{}])", r"\\\1", text)
