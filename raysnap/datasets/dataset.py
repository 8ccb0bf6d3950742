"""Datasets on disk: folders of images or texts, found, listed and checked.

Nothing here reads an item: a dataset is a listing. `raysnap.datasets.layout` recognises how a folder is laid out;
`raysnap.datasets.pixel_cache` decodes the images that the listing names, `raysnap.datasets.text` tokenises its texts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from blake3 import blake3

from raysnap.config.folders import expanded, local_path
from raysnap.config.parts import ShapesConfig
from raysnap.datasets.image_folder import read_record
from raysnap.datasets.layout.account import Account, LeftOut
from raysnap.datasets.layout.recognise import Listing, recognise
from raysnap.datasets.layout.splits import SPLITS
from raysnap.datasets.layout.suffixes import TEXT_TABLE_SUFFIXES, Kind, suffixes_of
from raysnap.datasets.published import SOURCES
from raysnap.datasets.shapes import TASKS as SHAPES
from raysnap.datasets.shapes import draw_task, drawing_digest, drawing_record
from raysnap.datasets.text.words import TASKS as WORDS
from raysnap.datasets.text.words import write_task, writing_record
from raysnap.errors import DataError
from raysnap.humanize import plural, suggest

MIN_TRAIN_IMAGES_PER_CLASS = 2
BUILT_IN = (*SHAPES, *WORDS)
"""The names of the datasets that raysnap makes itself."""


@dataclass(frozen=True)
class Item:
    """One image or text of a dataset; `label` indexes the dataset's classes."""

    path: Path
    label: int


@dataclass(frozen=True)
class Dataset:
    """One folder of images or texts: only the splits that exist, items sorted by class and file.

    >>> dataset = raysnap.open_dataset("shapes-shape-a", "data")
    >>> {split: len(items) for split, items in dataset.splits.items()}
    {'train': 16, 'val': 8, 'test': 8}

    Attributes:
        classes: those of train, sorted, and after them those that only val or test has.
        digest: digest of the content as `dataset.json` states it; None for a folder that raysnap did not make.
        left_out: files of its folder that are not part of it, with reasons.
        notes: how its folder was understood, where it could be understood otherwise.
        kind: what its items are.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    splits: dict[str, tuple[Item, ...]]
    digest: str | None = None
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    kind: Kind = "images"

    @property
    def image_paths(self) -> list[Path]:
        """Every image, or text, of every split, sorted by split, class and file."""
        return [item.path for split in SPLITS for item in self.splits.get(split, ())]

    @cached_property
    def fingerprint(self) -> str:
        """What tells this dataset from others: its digest, else one of the names and lengths of its images.

        Raises:
            DataError: an image that was listed is gone.
        """
        if self.digest is not None:
            return self.digest
        hasher = blake3()
        try:
            for path in self.image_paths:
                facts = f"{path.relative_to(self.root).as_posix()}\0{path.stat().st_size}\n"
                hasher.update(facts.encode(errors="surrogateescape"))
        except OSError as error:
            raise DataError(f"{error.filename}: existed a moment ago and can't be read: {error.strerror}") from None
        return f"names-and-lengths:{hasher.hexdigest()}"

    def account(self, bad: Iterable[str] = ()) -> Account:
        """Return how many images were read, and what was left out or is bad."""
        num_images = {split: len(items) for split, items in self.splits.items()}
        num_left_out = sum(one.num_files for one in self.left_out)
        bad = tuple(dict.fromkeys(bad))
        return Account(self.name, num_images, num_left_out, self.left_out, bad, self.notes, self.kind)


def open_dataset(name_or_path: str, data_dir: Path | str = "data", shapes: ShapesConfig | None = None) -> Dataset:
    """Open the dataset in `data_dir/<name>` or in the folder at that path; draw a `shapes` task on first use.

    >>> raysnap.open_dataset("shapes-shape-a", "data").name
    'shapes-shape-a'

    Args:
        name_or_path: a name, or the path of an ImageFolder.
        data_dir: the folder of the named datasets.
        shapes: how to draw a `shapes` task, unless it was drawn in that way before. None accepts any drawing and draws
            with the defaults.

    Raises:
        DataError: there is no such dataset, or no model can be trained on it.
    """
    data_dir = local_path(data_dir)
    root = find_dataset(name_or_path, data_dir, shapes)
    return read_folder(root or _draw(name_or_path, data_dir, shapes or ShapesConfig()))


def find_dataset(name_or_path: str, data_dir: Path, shapes: ShapesConfig | None = None) -> Path | None:
    """Return the folder of a dataset by name or path; None for a `shapes` task that is not drawn yet.

    Args:
        shapes: how a `shapes` task is drawn, which several jobs may do in different ways in one `data_dir`: the first
            drawing has the task's name, any other a digest after it. None takes the first.

    Raises:
        DataError: there is no such dataset, or there is a file in its place.
    """
    if not name_or_path:
        raise DataError(
            "dataset '': expected a name or a path, found an empty string; `raysnap data ls` lists the names"
        )
    local_path(name_or_path)
    name_or_path = expanded(name_or_path)
    is_name = name_or_path not in (".", "..") and Path(name_or_path).name == name_or_path
    try:
        if data_dir.exists() and not data_dir.is_dir():
            raise DataError(f"data_dir {data_dir}: expected a folder, found a file; choose another data_dir")
        for path in (data_dir / name_or_path, Path(name_or_path)) if is_name else (Path(name_or_path),):
            if path.is_dir() and name_or_path in BUILT_IN and shapes is not None and path == data_dir / name_or_path:
                return next((each for each in _drawing_dirs(path, shapes) if _is_drawn(each, shapes)), None)
            if path.is_dir():
                return path
            if path.exists():
                is_table = path.suffix.lower() in TEXT_TABLE_SUFFIXES
                hint = (
                    f"; `raysnap data prepare NAME --source {path}` makes one of a table of texts" if is_table else ""
                )
                raise DataError(f"dataset {path}: expected a folder with train/<class>/<image>, found a file{hint}")
    except OSError as error:
        raise DataError(f"dataset {name_or_path!r}: can't be opened: {error.strerror}") from None
    if name_or_path in BUILT_IN:
        return None
    if name_or_path in SOURCES:
        raise DataError(
            f"dataset {name_or_path!r}: expected the folder {data_dir / name_or_path}, found none; get it from "
            f"{SOURCES[name_or_path]} and run `raysnap data prepare {name_or_path} --source PATH`"
        )
    if not is_name:
        raise DataError(f"dataset {name_or_path!r}: expected a folder with train/<class>/<image>, found no folder")
    known = [*BUILT_IN, *SOURCES, *folders_in(data_dir)]
    hint = suggest(name_or_path, known) or "; `raysnap data ls` lists the names"
    raise DataError(f"dataset {name_or_path!r}: expected a folder in {data_dir} or a known name, found neither{hint}")


def kind_of_dataset(name: str, root: Path | None) -> Kind:
    """Return what a dataset's items are; `root` is None for one that raysnap makes on first use."""
    if root is None:
        return "texts" if name in WORDS else "images"
    return read_folder(root).kind


def read_folder(root: Path) -> Dataset:
    """List the dataset in the folder `root`.

    Raises:
        DataError: it is laid out in no way that has one meaning; there is no train split, fewer than two classes, a
            class with fewer than two training images or an empty split; or a folder can't be read.
    """
    return dataset_of(root, recognise(root))


def dataset_of(root: Path, listing: Listing) -> Dataset:
    """Return the dataset of a folder that was listed.

    Raises:
        DataError: no model can be trained on it, or its `dataset.json` can't be read.
    """
    _check_listing(root, listing)
    train = listing.splits["train"]
    others = {name for by_class in listing.splits.values() for name, paths in by_class.items() if paths} - set(train)
    classes = (*train, *sorted(others))
    labels = {name: label for label, name in enumerate(classes)}
    splits = {
        split: tuple(
            Item(root / path, labels[name])
            for name in sorted(by_class, key=lambda name: labels.get(name, -1))
            for path in by_class[name]
        )
        for split, by_class in listing.splits.items()
    }
    record = read_record(root) or {}
    digest = record.get("digest")
    name = root.name if root.name not in ("", "..") else root.resolve().name
    if record.get("name") in BUILT_IN and name == f"{record['name']}-{drawing_digest(record)}":
        name = record["name"]
    return Dataset(
        name,
        root,
        classes,
        splits,
        digest if isinstance(digest, str) else None,
        listing.left_out,
        listing.notes,
        listing.kind,
    )


def folders_in(data_dir: Path) -> list[str]:
    """Return the names of the dataset folders in `data_dir`, sorted; none where it does not exist."""
    if not data_dir.is_dir():
        return []
    return sorted(path.name for path in data_dir.iterdir() if not path.name.startswith(".") and path.is_dir())


def _check_listing(root: Path, listing: Listing) -> None:
    where = f"dataset {root}"
    train = listing.splits.get("train", {})
    if len(train) < 2:
        raise DataError(f"{where}/train: expected a folder per class, at least 2, found {len(train) or 'none'}")
    for name, paths in train.items():
        if len(paths) < MIN_TRAIN_IMAGES_PER_CLASS:
            found = f"1 {listing.kind[:-1]}" if len(paths) == 1 else f"no {listing.kind}"
            raise DataError(
                f"{where}/train/{name}: expected at least {MIN_TRAIN_IMAGES_PER_CLASS} {listing.kind}, found {found}"
                f"{_left_out_of(listing, name)}; add some ({', '.join(sorted(suffixes_of(listing.kind)))}) or remove "
                "the folder"
            )
    for split, by_class in listing.splits.items():
        if not any(by_class.values()):
            raise DataError(f"{where}/{split}: expected {listing.kind}, found none; fill the folder or remove it")


def _left_out_of(listing: Listing, class_name: str) -> str:
    """Say what was left out of a class, if anything that somebody may miss."""
    missed = [one for one in listing.left_out if not one.is_expected and class_name in one.path.split("/")[:-1]]
    return f" and {plural(len(missed), 'file')} left out ({missed[0].path}: {missed[0].reason})" if missed else ""


def _draw(name: str, data_dir: Path, shapes: ShapesConfig) -> Path:
    """Draw a `shapes` task, or write a `words` task, into the first folder that is free for it; return that folder."""
    for root in _drawing_dirs(data_dir / name, shapes):
        if not root.exists():
            (write_task if name in WORDS else draw_task)(name, root, shapes)
        if _is_drawn(root, shapes):  # another process may have put its own drawing there meanwhile
            return root
    raise DataError(
        f"dataset {root}: expected {name} drawn with {shapes}, found another dataset; move it away or choose another "
        "data_dir"
    )


def _drawing_dirs(first: Path, shapes: ShapesConfig) -> tuple[Path, Path]:
    """Return the folders in which a drawing of the task may be: that of the first drawing, and one of its own."""
    return first, first.with_name(f"{first.name}-{drawing_digest(_record_of(first.name, shapes))}")


def _is_drawn(root: Path, shapes: ShapesConfig) -> bool:
    """Whether the folder holds this drawing of a task."""
    record = (read_record(root) or {}) if root.is_dir() else {}
    name = record.get("name")
    return name in BUILT_IN and drawing_digest(record) == drawing_digest(_record_of(name, shapes))


def _record_of(name: str, shapes: ShapesConfig) -> dict[str, Any]:
    """Return what `dataset.json` says of a built-in dataset that is made in this way."""
    return (writing_record if name in WORDS else drawing_record)(name, shapes)
