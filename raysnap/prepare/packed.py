"""Datasets in parquet files and tar shards, as Hugging Face's `datasets` and `webdataset` write them.

Both are read twice, like any source: first the labels, to make a plan, then the images; nothing is unpacked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysnap.datasets.layout.splits import split_mentioned
from raysnap.datasets.layout.suffixes import image_suffixes
from raysnap.datasets.layout.tables import LABEL_NAMES
from raysnap.errors import DataError
from raysnap.humanize import plural
from raysnap.prepare.archives import Entry, read_archive
from raysnap.prepare.layouts import Plan, Target

if TYPE_CHECKING:
    import pyarrow.parquet as pq

ROWS_AT_ONCE = 64
MAX_LABEL_BYTES = 64 * 1024
CLASS_LISTS = ("classnames.txt", "classes.txt", "labels.txt")

_LABEL_ENTRIES = ("cls", "cls.txt", "label", "label.txt", "class", "class.txt", "cls.json")


def plan_parquet(paths: Sequence[Path], root: Path, label_column: str | None = None) -> Plan:
    """Plan a dataset of parquet files with embedded images and a column of classes.

    Raises:
        DataError: a file can't be read, or it isn't clear which column holds the images or the classes.
    """
    targets: dict[str, Target] = {}
    places: dict[str, tuple[Path, str]] = {}
    for path in paths:
        place = path.relative_to(root).as_posix()
        with _open_parquet(path) as file:
            image, label = _image_column(file, path), _label_column(file, path, label_column)
            names = _class_names(file, label)
            places[place] = (path, image)
            row = 0
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=[label]):
                for value in batch.column(0).to_pylist():
                    class_name = _class_of(value, names, f"{path}: row {row}: {label}")
                    file_name = f"{path.stem}_{row:07d}"  # its content says its suffix
                    targets[f"{place}#{row}"] = Target(_split_of(place), class_name, class_name, file_name)
                    row += 1

    def render(wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
        for place, (path, image) in places.items():
            with _open_parquet(path) as file:
                row = 0
                for batch in file.iter_batches(ROWS_AT_ONCE, columns=[image]):
                    for value in batch.column(0).to_pylist():
                        name = f"{place}#{row}"
                        row += 1
                        if name in wanted:
                            yield name, _content(value)

    return Plan(targets, "by the names of the files", render=render)


def has_images(path: Path) -> bool:
    """Return whether a parquet file has a column with the bytes of images.

    Raises:
        DataError: it can't be read.
    """
    with _open_parquet(path) as file:
        return bool(_image_columns(file))


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet file; classes that it numbers go by their names, and are None where they have none.

    Raises:
        DataError: it can't be read.
    """
    with _open_parquet(path) as file:
        names_of = {column: names for column in file.schema_arrow.names if (names := _class_names(file, column))}
        for batch in file.iter_batches(ROWS_AT_ONCE):
            for row in batch.to_pylist():
                for column, names in names_of.items():
                    value = row[column]
                    row[column] = names[value] if isinstance(value, int) and 0 <= value < len(names) else None
                yield row


def plan_shards(paths: Sequence[Path], root: Path) -> Plan:
    """Plan a dataset of tar shards, in which entries that differ in their suffixes only are one sample.

    Raises:
        DataError: an archive is damaged or hostile, or its samples have no labels.
    """
    names = _listed_classes(root)
    targets: dict[str, Target] = {}
    wanted_in: dict[Path, str] = {}
    for path in paths:
        place = path.relative_to(root).as_posix()
        wanted_in[path] = place
        images, labels = _read_shard(path)
        unlabelled = [key for key in images if key not in labels]
        if unlabelled:
            raise DataError(
                f"{path}: expected a label (.cls or .json) with every image, found none for "
                f"{plural(len(unlabelled), 'image')}, such as {images[unlabelled[0]]!a}; if the archive holds "
                "folders of classes, unpack it and pass the folder"
            )
        stem = _plain(place.removesuffix(path.suffix))
        for key, entry in images.items():
            class_name = _class_of(labels[key], names, f"{path}: {key}")
            file_name = f"{stem}_{_plain(key)}.{entry.rpartition('.')[2]}"
            targets[f"{place}#{entry}"] = Target(_split_of(place), class_name, class_name, file_name)

    def render(wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
        for path, place in wanted_in.items():
            for entry in read_archive(path):
                if f"{place}#{entry.name}" in wanted:
                    yield f"{place}#{entry.name}", entry.read()

    return Plan(targets, "by the names of the shards", render=render)


def _plain(text: str) -> str:
    """Return the text as part of a file's name."""
    return re.sub(r"[^\w.-]", "_", text)


def _split_of(place: str) -> str:
    """Return the split that a shard's name or one of its folders mentions; train where none does."""
    return next((split for part in reversed(place.split("/")) if (split := split_mentioned(part))), "train")


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(f"{path}: reading parquet files needs pyarrow; run `pip install pyarrow`") from None
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: expected a parquet file, found one that can't be read: {error}") from None


def _features(file: pq.ParquetFile) -> dict[str, Any]:
    """Return what Hugging Face's `datasets` says of the columns; empty where it didn't write the file."""
    try:
        features = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _image_columns(file: pq.ParquetFile) -> list[str]:
    import pyarrow as pa

    schema = file.schema_arrow
    structs = [one.name for one in schema if pa.types.is_struct(one.type) and one.type.get_field_index("bytes") >= 0]
    is_binary = (pa.types.is_binary, pa.types.is_large_binary)
    return structs or [one.name for one in schema if any(check(one.type) for check in is_binary)]


def _image_column(file: pq.ParquetFile, path: Path) -> str:
    found = _image_columns(file)
    if len(found) != 1:
        listing = ", ".join(found) or f"none among {', '.join(file.schema_arrow.names)}"
        raise DataError(f"{path}: expected one column with the bytes of images, found {listing}")
    return found[0]


def _label_column(file: pq.ParquetFile, path: Path, asked: str | None) -> str:
    names = file.schema_arrow.names
    if asked is not None:
        found = [asked] if asked in names else []
    else:
        kinds = {name: feature.get("_type") for name, feature in _features(file).items() if isinstance(feature, dict)}
        classes = [name for name in names if kinds.get(name) == "ClassLabel"]
        found = classes or [name for name in names if name.lower() in LABEL_NAMES]
    if len(found) != 1:
        listing = ", ".join(found) or f"none among {', '.join(names)}"
        raise DataError(f"{path}: expected one column of classes, found {listing}; choose with --label-column COLUMN")
    return found[0]


def _class_names(file: pq.ParquetFile, label: str) -> Sequence[str]:
    feature = _features(file).get(label)
    names = feature.get("names") if isinstance(feature, dict) else None
    if isinstance(names, dict):  # as older versions wrote it: {"0": "cat", …}
        names = [names[key] for key in sorted(names, key=int)]
    return [str(name) for name in names] if isinstance(names, list) else ()


def _class_of(value: Any, names: Sequence[str], where: str) -> str:
    """Return the class that a label stands for: its name, or the text of the label."""
    if isinstance(value, str) and value.strip().isdecimal() and names:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and names:
        if not 0 <= value < len(names):
            raise DataError(f"{where}: expected a label from 0 to {len(names) - 1}, found {value}")
        return names[value]
    if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
        raise DataError(f"{where}: expected a class, found {value!r}")
    return str(value).strip()


def _content(value: Any) -> bytes:
    """Return the bytes of an image in a row; none where the row has none."""
    content = value.get("bytes") if isinstance(value, dict) else value
    return content if isinstance(content, bytes) else b""


def _read_shard(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the name of the image entry and the label of each sample, by its key."""
    images: dict[str, str] = {}
    labels: dict[str, Any] = {}
    from_json: dict[str, Any] = {}
    for entry in read_archive(path):
        folder, _, name = entry.name.rpartition("/")
        stem, _, kind = name.partition(".")
        key, kind = f"{folder}/{stem}" if folder else stem, kind.lower()
        if f".{kind.rpartition('.')[2]}" in image_suffixes():
            if key in images:
                raise DataError(f"{path}: expected one image per sample, found {images[key]!a} and {entry.name!a}")
            images[key] = entry.name
        elif kind in _LABEL_ENTRIES:
            labels[key] = _text(entry)
        elif kind == "json":
            from_json[key] = _label_in(_text(entry))
    return images, {key: label for key, label in (from_json | labels).items() if label not in (None, "")}


def _text(entry: Entry) -> str:
    return entry.read().decode("utf-8", "replace").strip() if entry.num_bytes <= MAX_LABEL_BYTES else ""


def _label_in(text: str) -> Any:
    """Return the label in a sample's JSON document; None where it has none."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    lower = {str(key).lower(): value for key, value in document.items()}
    return next((lower[name] for name in LABEL_NAMES if isinstance(lower.get(name), str | int)), None)


def _listed_classes(root: Path) -> Sequence[str]:
    """Return the names of the classes in a list beside the shards, one a line; none where there is no list."""
    for name in CLASS_LISTS:
        path = root / name
        if path.is_file():
            return [line.strip() for line in path.read_text("utf-8", "replace").splitlines() if line.strip()]
    return ()
