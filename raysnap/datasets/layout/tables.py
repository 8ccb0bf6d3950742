"""Tables that say which image is of which class: CSV, TSV, JSON, JSON lines, or words in lines.

A table's names are matched with the images that are there, by path, by the end of a path, or without suffix. What can
be understood in more than one way is refused with the choice to make.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from raysnap.datasets.layout.splits import split_called
from raysnap.datasets.layout.walk import join
from raysnap.errors import DataError
from raysnap.humanize import plural

MAX_TABLE_BYTES = 256 * 2**20
MAX_JSON_BYTES = 32 * 2**20  # which takes ten times as much in memory; annotations of boxes can be long
MIN_SHARE = 0.5  # of a table's rows, or of the images, that belong together
NUM_SAMPLED = 500  # rows that show which columns hold what

LABEL_NAMES = (
    "label", "labels", "class", "class_name", "classname", "label_name", "category", "category_name", "target", "y",
    "species", "breed", "choice", "diagnosis", "dx", "tag", "class_id", "label_id", "category_id",
)  # fmt: skip
_SPLIT_NAMES = ("split", "set", "subset", "partition", "phase", "is_valid", "is_test")


@dataclass(frozen=True)
class LabelTable:
    """What a table says of images that are there.

    Attributes:
        path: of the table, for messages.
        classes: the class of each image, by its path.
        splits: the split of each image, where the table says it.
        num_missing: rows that name no image that is there, and `missing`, the first of them.
        unlabelled: images that a row names without a class.
    """

    path: str
    classes: dict[str, str]
    splits: dict[str, str]
    num_missing: int
    missing: tuple[str, ...]
    unlabelled: tuple[str, ...]


@dataclass(frozen=True)
class _Rows:
    """A table as text; the first row is the header, where there is one."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    has_header: bool = True

    def values(self, column: int) -> list[str]:
        return [row[column] for row in self.rows]

    def without_header(self) -> _Rows:
        """Return the same with the first row as one of the rows, and numbers as the columns' names."""
        columns = tuple(f"column {number}" for number in range(1, len(self.columns) + 1))
        return _Rows(columns, (self.columns, *self.rows), has_header=False)


class Matcher:
    """Finds images by what a table calls them."""

    def __init__(self, images: Iterable[str]):
        self._images = set(images)
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for image in self._images:
            name = image.rpartition("/")[2]
            self._by_name.setdefault(name, []).append(image)
            self._by_stem.setdefault(name.rpartition(".")[0], []).append(image)

    def __len__(self) -> int:
        return len(self._images)

    def find(self, given: str, folder: str) -> str | None:
        """Return the image that a table in `folder` calls `given`; None where there is none, or more than one."""
        name = given.strip().replace("\\", "/").partition("?d=")[2] or given.strip().replace("\\", "/")
        place = join(folder, name.removeprefix("./"))
        if place in self._images:
            return place
        found = self._by_end(name) or self._by_end(unquote(name))
        near = [image for image in found if not folder or image.startswith(f"{folder}/")]
        found = near or found
        return found[0] if len(found) == 1 else None

    def _by_end(self, name: str) -> list[str]:
        """Return the images whose paths end like the name, as far as they agree."""
        last = name.rpartition("/")[2]
        found = self._by_name.get(last) or self._by_stem.get(last) or []
        if len(found) < 2:
            return found
        cut = str if last in self._by_name else _without_suffix
        parts = name.split("/")
        for first in range(len(parts) - 1):
            end = "/".join(parts[first:])
            agreeing = [image for image in found if f"/{cut(image)}".endswith(f"/{end}")]
            if agreeing:
                return agreeing
        return found


def _without_suffix(path: str) -> str:
    return path.rpartition(".")[0]


def read_table(
    root: Path,
    path: str,
    matcher: Matcher,
    known: frozenset[str] = frozenset(),
    *,
    label_column: str | None = None,
    is_asked: bool = False,
) -> LabelTable | None:
    """Return what the table at `root / path` says of the images; None where it is no table of labels.

    Args:
        known: classes that are known from elsewhere.
        label_column: the column of the classes, where a person chose one.
        is_asked: whether a person named this table, so that it has to be one.

    Raises:
        DataError: it can be understood in several ways; or it is no table of labels, and was asked for.
    """
    where = f"{root / path}"
    folder = path.rpartition("/")[0]
    table = _read_rows(root / path, is_asked=is_asked)
    if table is not None and any(matcher.find(cell, folder) is not None for cell in table.columns if cell):
        table = table.without_header()
    names = None if table is None else _name_column(table, matcher, folder)
    if table is None or names is None:
        if is_asked:
            raise DataError(
                f"{where}: expected a table with a column of image files, found none that names these images"
            )
        return None
    found = [matcher.find(name, folder) for name in table.values(names)]
    num_found = sum(image is not None for image in found)
    if not is_asked and num_found < MIN_SHARE * len(found) and num_found < MIN_SHARE * len(matcher):
        return None
    splits = _split_column(table)
    others = [column for column in range(len(table.columns)) if column not in (names, splits)]
    labels = _labels(table, others, where, label_column, known)
    if labels is None:
        return None
    missing = [name for name, image in zip(table.values(names), found, strict=True) if image is None]
    classes, unlabelled = _by_image(found, labels, where)
    by_split = {} if splits is None else _splits(table, splits, found, where)
    return LabelTable(path, classes, by_split, len(missing), tuple(missing[:3]), unlabelled)


def _read_rows(path: Path, *, is_asked: bool) -> _Rows | None:
    """Return the rows of a table; None where the file is none."""
    try:
        suffix = path.suffix.lower()
        if path.stat().st_size > (MAX_JSON_BYTES if suffix == ".json" and not is_asked else MAX_TABLE_BYTES):
            return None
        text = path.read_text("utf-8-sig")
        if suffix == ".jsonl":
            return _from_objects([json.loads(line) for line in text.splitlines() if line.strip()])
        if suffix == ".json":
            return _from_objects(json.loads(text))
        return _from_lines(text, suffix)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        if is_asked:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{path}: expected a table of labels, found one that can't be read: {reason}") from None
        return None


def _from_objects(objects: Any) -> _Rows | None:
    if not isinstance(objects, list) or not objects or not all(isinstance(one, dict) for one in objects):
        return None
    columns = tuple(dict.fromkeys(str(key) for one in objects for key in one))
    return _Rows(columns, tuple(tuple(_text(one.get(column)) for column in columns) for one in objects))


def _text(value: Any) -> str:
    """Return a value of JSON as text; a list of one value as that value."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _from_lines(text: str, suffix: str) -> _Rows | None:
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    if suffix == ".csv":
        delimiter = max(",;\t", key=lines[0].count)
        rows = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
    elif suffix == ".tsv" or "\t" in lines[0]:
        rows = list(csv.reader(lines, delimiter="\t"))
    else:
        rows = [line.split() for line in lines]
    width = max(Counter(len(row) for row in rows).most_common(1)[0][0], 1)
    rows = [[cell.strip() for cell in row] for row in rows if len(row) == width]
    if width < 2 or not rows:
        return None
    return _Rows(tuple(rows[0]), tuple(tuple(row) for row in rows[1:]))


def _name_column(table: _Rows, matcher: Matcher, folder: str) -> int | None:
    """Return the column that names most images, each counted once, in a sample of the rows."""
    step = max(1, len(table.rows) // NUM_SAMPLED)
    sample = table.rows[::step]
    counts = [
        len({matcher.find(row[column], folder) for row in sample if row[column]} - {None})
        for column in range(len(table.columns))
    ]
    best = max(counts, default=0)
    return counts.index(best) if best else None


def _split_column(table: _Rows) -> int | None:
    for column, name in enumerate(table.columns):
        if name.strip().lower() in _SPLIT_NAMES:
            return column
    return None


def _splits(table: _Rows, column: int, found: Sequence[str | None], where: str) -> dict[str, str]:
    name = table.columns[column].strip().lower()
    by_image: dict[str, str] = {}
    for image, value in zip(found, table.values(column), strict=True):
        split = split_called(value)
        if name.startswith("is_"):
            is_it = value.strip().lower() in ("true", "1", "yes")
            split = ("val" if name == "is_valid" else "test") if is_it else "train"
        if split is None:
            raise DataError(f"{where}: column {table.columns[column]}: expected train, val or test, found {value!r}")
        if image is not None:
            by_image[image] = split
    return by_image


def _labels(
    table: _Rows, others: Sequence[int], where: str, label_column: str | None, known: frozenset[str]
) -> list[str] | None:
    """Return the class of each row, empty where it has none; None where the table is no table of labels."""
    if label_column is not None:
        if label_column not in table.columns:
            raise DataError(f"{where}: expected a column {label_column!r}, found {', '.join(table.columns)}")
        return table.values(table.columns.index(label_column))
    lower = [name.strip().lower() for name in table.columns]
    if "predictionstring" in lower:  # ImageNet's: a class and a box, repeated
        return [value.split(" ")[0] for value in table.values(lower.index("predictionstring"))]
    candidates = [lower.index(name) for name in LABEL_NAMES if name in lower and lower.index(name) in others]
    is_named = bool(candidates)
    if not candidates and (flags := _one_hot(table, others)) is not None:
        return flags
    if not candidates and len(others) == 1:
        candidates = list(others)
    if not candidates and known:
        candidates = [column for column in others if known.issuperset(filter(None, table.values(column)))]
    if not candidates and not table.has_header:
        candidates = [column for column in others if _are_words(table.values(column))]
    if len(candidates) > 1:
        candidates = _telling(table, candidates)
    if len(candidates) == 1:
        values = table.values(candidates[0])
        is_known = is_named or (bool(known) and known.issuperset(filter(None, values)))
        return _checked(values, table.columns[candidates[0]], where, is_known=is_known)
    if not others:
        return None
    listing = ", ".join(table.columns[column] for column in candidates or others)
    raise DataError(
        f"{where}: expected one column of classes, found {listing}; choose one with `raysnap data prepare NAME "
        f"--source FOLDER --labels {where} --label-column COLUMN`"
    )


def _one_hot(table: _Rows, others: Sequence[int]) -> list[str] | None:
    """Return the names of the columns that hold each row's only 1, where all columns hold 0 and 1."""
    zero, one = ("0", "0.0", "false"), ("1", "1.0", "true")
    if len(others) < 2:
        return None
    labels = []
    for row in table.rows:
        flags = [row[column].strip().lower() for column in others]
        if any(flag not in zero + one for flag in flags):
            return None
        held = [column for column, flag in zip(others, flags, strict=True) if flag in one]
        if len(held) != 1:
            return None
        labels.append(table.columns[held[0]].strip())
    return labels


def _telling(table: _Rows, candidates: Sequence[int]) -> list[int]:
    """Return the candidates, or the most telling of them where all group the rows alike: words rather than numbers."""
    pairs = {column: _groups(table.values(column)) for column in candidates}
    if len(set(pairs.values())) > 1:
        return list(candidates)
    words = [column for column in candidates if _are_words(table.values(column))]
    return [(words or list(candidates))[0]]


def _groups(values: Sequence[str]) -> tuple[int, ...]:
    """Return for each row the first row with the same value."""
    first: dict[str, int] = {}
    return tuple(first.setdefault(value, row) for row, value in enumerate(values))


def _are_words(values: Sequence[str]) -> bool:
    """Whether some of the values are no numbers."""
    return any(not value.lstrip("-").replace(".", "", 1).isdecimal() for value in values if value)


def _checked(values: list[str], column: str, where: str, *, is_known: bool) -> list[str]:
    """Return the classes of the rows; refuse a column that can't be one of classes."""
    filled = [value for value in values if value]
    if not is_known and len(filled) > 2 and len(set(filled)) == len(filled):
        raise DataError(
            f"{where}: column {column}: expected classes, found {plural(len(filled), 'different value')} in as many "
            "rows; give another table with --labels of `raysnap data prepare`"
        )
    listed = next((value for value in filled if value.startswith("[")), None)
    if listed is not None:
        raise DataError(f"{where}: column {column}: expected one class per image, found {listed[:60]}")
    return values


def _by_image(found: Sequence[str | None], labels: Sequence[str], where: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the class of each image, and the images without one."""
    classes: dict[str, str] = {}
    unlabelled = []
    for image, label in zip(found, labels, strict=True):
        if image is None:
            continue
        if not label:
            unlabelled.append(image)
        elif classes.setdefault(image, label) != label:
            raise DataError(
                f"{where}: {image}: expected one class per image, found {classes[image]!r} and {label!r}; keep one row"
            )
    return classes, tuple(image for image in unlabelled if image not in classes)
