"""Tables of a report: the same rows as cells of the page, as CSV with raw values, and as Markdown to paste."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from raysnap.humanize import (
    NOTHING,
    bytes_text,
    clean,
    count_text,
    flops_text,
    is_known,
    ratio_text,
    score_text,
    seconds_text,
    share_text,
)

_TEXTS = {
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


@dataclass(frozen=True)
class Column:
    """A column: the key of its values, its heading, what they are, a hint.

    `kind` is `text`, `name` (long words that may break) or a kind of number. What is not on the page is in the files.
    """

    key: str
    heading: str
    kind: str = "text"
    hint: str = ""
    is_on_page: bool = True

    @property
    def is_number(self) -> bool:
        """Whether its values are numbers."""
        return self.kind in _TEXTS

    def text(self, value: Any) -> str:
        """A value as people read it."""
        if self.is_number:
            return _TEXTS[self.kind](value)
        return NOTHING if value is None or value == "" else str(value)


@dataclass(frozen=True)
class Row:
    """A row: raw values by column; chips (text, CSS class) by column; CSS class and data attributes of the row."""

    values: dict[str, Any]
    chips: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    bars: dict[str, float] = field(default_factory=dict)
    hints: dict[str, str] = field(default_factory=dict)
    css: str = ""
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DataTable:
    """A table: its file name without ending, what it holds in a line, columns and rows.

    Attributes:
        num_shown: how many rows stand on the page until it is asked for all; None is all.
        statuses: (status, number of rows) to filter by, where the table is to be filtered.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    num_shown: int | None = None
    statuses: tuple[tuple[str, int], ...] = ()
    is_filtered: bool = False

    def to_csv(self) -> str:
        """Comma-separated values: raw numbers in base units, text that no spreadsheet takes for a formula."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([_plain(column.key) for column in self.columns])
        for row in self.rows:
            writer.writerow([_raw(row.values.get(column.key)) for column in self.columns])
        return out.getvalue()

    def to_markdown(self) -> str:
        """A GitHub-flavoured Markdown table under its caption."""
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
    """The columns in which any row has a value."""
    return tuple(one for one in columns if any(row.values.get(one.key) not in (None, "") for row in rows))


def _raw(value: Any) -> str:
    if value is None:
        return ""
    return repr(value) if isinstance(value, (int, float)) else _plain(str(value))


def _plain(text: str) -> str:
    text = clean(text)
    return f"'{text}" if _FORMULA.match(text) else text


def _escaped(text: str) -> str:
    """The text in one line, nothing in it Markdown or HTML."""
    text = html.escape(" ".join(clean(text).split()), quote=False)
    return re.sub(r"([\\`*\[\]|~#{}])", r"\\\1", text)
