"""Datasets of texts in tables: CSV with a header, JSON lines and parquet, with a column of texts and one of classes."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raysnap.datasets.layout.account import LeftOut
from raysnap.datasets.layout.splits import split_mentioned
from raysnap.datasets.layout.suffixes import PARQUET_SUFFIXES
from raysnap.datasets.layout.tables import LABEL_NAMES
from raysnap.datasets.text.text_file import MAX_TEXT_BYTES
from raysnap.errors import DataError
from raysnap.prepare.layouts import Plan, Target
from raysnap.prepare.packed import parquet_rows

TEXT_NAMES = ("text", "sentence", "review", "content", "document", "body", "message", "comment", "tweet")

Row = Mapping[str, Any]


def plan_text_tables(
    paths: Sequence[Path], root: Path, text_column: str | None = None, label_column: str | None = None
) -> Plan:
    """Plan a dataset of tables with a text per row; rows without a text or a class are left out, and counted.

    Raises:
        DataError: a table can't be read, or it isn't clear which column holds the texts or the classes.
    """
    targets: dict[str, Target] = {}
    left_out = []
    for path in paths:
        place = path.relative_to(root).as_posix()
        split = split_mentioned(place) or "train"
        num_empty = 0
        for number, text, label in _rows(path, text_column, label_column):
            if text and label:
                name = f"{path.stem}_{number:07d}.txt"
                targets[f"{place}#{number}"] = Target(split, label, label, name)
            else:
                num_empty += 1
        if num_empty:
            left_out.append(LeftOut(place, "rows without a text or a class", num_empty))

    def render(wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
        for path in paths:
            place = path.relative_to(root).as_posix()
            for number, text, _ in _rows(path, text_column, label_column):
                if f"{place}#{number}" in wanted:
                    yield f"{place}#{number}", text.encode(errors="surrogateescape")  # the bytes of the table

    return Plan(targets, "by the names of the files", render=render, kind="texts", left_out=tuple(left_out))


def _rows(path: Path, text_column: str | None, label_column: str | None) -> Iterator[tuple[int, str, str]]:
    """Yield each row's number, text and class; either is empty where the row has none."""
    columns: tuple[str, str] | None = None
    for number, row in enumerate(_read(path)):
        if columns is None:
            columns = (
                _column(path, row, text_column, TEXT_NAMES, "--text-column", "texts"),
                _column(path, row, label_column, (*LABEL_NAMES, "sentiment"), "--label-column", "classes"),
            )
        text, label = (row.get(column) for column in columns)
        if isinstance(text, list | dict) or isinstance(label, list | dict):
            raise DataError(f"{path}: row {number}: expected a text and a class, found a list or an object")
        yield number, "" if text is None else str(text), "" if label is None else str(label).strip()


def _column(path: Path, row: Row, asked: str | None, names: Sequence[str], option: str, what: str) -> str:
    """Return the column that was asked for, or the one that is called as such columns usually are."""
    by_lower = {name.strip().lower(): name for name in row if isinstance(name, str)}
    found = [by_lower[name] for name in names if name in by_lower]
    if asked is not None:
        found = [asked] if asked in row else []
    if not found:
        listed = ", ".join(map(str, row))
        expected = f"a column {asked!r}" if asked is not None else f"a header with a column of {what}"
        raise DataError(f"{path}: expected {expected}, found {listed[:200]}; choose one with {option} COLUMN")
    return found[0]


def _read(path: Path) -> Iterator[Row]:
    """Yield the rows of a table; bytes that are no UTF-8 stay in the row, so that it alone is bad."""
    if path.suffix.lower() in PARQUET_SUFFIXES:
        yield from parquet_rows(path)
        return
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            if path.suffix.lower() == ".jsonl":
                yield from _json_lines(path, file)
                return
            csv.field_size_limit(MAX_TEXT_BYTES)
            header = file.readline()
            file.seek(0)
            delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header.count)
            yield from csv.DictReader(file, delimiter=delimiter)
    except csv.Error as error:
        raise DataError(f"{path}: expected a table, found {error}") from None
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from None


def _json_lines(path: Path, lines: Iterator[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {number}: expected a JSON object, found {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number}: expected a JSON object, found another document")
        yield row
