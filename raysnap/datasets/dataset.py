"""Datasets on disk: image folders `<name>/{train,val,test}/<class>/<image>`, found, listed and checked.

Nothing here reads a pixel: a dataset is a listing. `raysnap.datasets.pixel_cache` decodes what the listing names.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raysnap.config.folders import expanded, local_path
from raysnap.config.parts import ShapesConfig
from raysnap.datasets.image_folder import RECORD_NAME, read_record
from raysnap.datasets.published import SOURCES
from raysnap.datasets.shapes import TASKS, draw_task, drawing_record
from raysnap.errors import DataError
from raysnap.humanize import suggest

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"))
MIN_TRAIN_IMAGES_PER_CLASS = 2


@dataclass(frozen=True)
class Item:
    """One image of a dataset; `label` indexes the dataset's classes."""

    path: Path
    label: int


@dataclass(frozen=True)
class Dataset:
    """One image folder: only the splits that exist, items sorted by class and file.

    >>> dataset = raysnap.open_dataset("shapes-shape-a", "data")
    >>> {split: len(items) for split, items in dataset.splits.items()}
    {'train': 16, 'val': 8, 'test': 8}

    Attributes:
        digest: digest of the content as `dataset.json` states it; None for a folder that raysnap did not make.
        num_ignored: number of files in class folders that are not images (other suffixes, dangling links).
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    splits: dict[str, tuple[Item, ...]]
    digest: str | None = None
    num_ignored: int = 0


def open_dataset(name_or_path: str, data_dir: Path | str, shapes: ShapesConfig | None = None) -> Dataset:
    """Open the dataset in `data_dir/<name>` or in the folder at that path; draw a `shapes` task on first use.

    >>> raysnap.open_dataset("shapes-shape-a", "data").name
    'shapes-shape-a'

    Args:
        name_or_path: a name, or the path of an ImageFolder.
        data_dir: the folder of the named datasets.
        shapes: how to draw a `shapes` task; one that exists must have been drawn the same way. None accepts any and
            draws with the defaults.

    Raises:
        DataError: there is no such dataset, or no model can be trained on it.
    """
    data_dir = local_path(data_dir)
    root = find_dataset(name_or_path, data_dir)
    if root is None:
        root = data_dir / name_or_path
        draw_task(name_or_path, root, shapes or ShapesConfig())
    elif shapes is not None and root == data_dir / name_or_path and name_or_path in TASKS:
        _refuse_other_drawing(name_or_path, root, shapes)
    return read_folder(root)


def find_dataset(name_or_path: str, data_dir: Path) -> Path | None:
    """Return the folder of a dataset by name or path; None for a `shapes` task that is not drawn yet.

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
            if path.is_dir():
                return path
            if path.exists():
                raise DataError(f"dataset {path}: expected a folder with train/<class>/<image>, found a file")
    except OSError as error:
        raise DataError(f"dataset {name_or_path!r}: can't be opened: {error.strerror}") from None
    if name_or_path in TASKS:
        return None
    if name_or_path in SOURCES:
        raise DataError(
            f"dataset {name_or_path!r}: expected the folder {data_dir / name_or_path}, found none; get it from "
            f"{SOURCES[name_or_path]} and run `raysnap data prepare {name_or_path} --source PATH`"
        )
    if not is_name:
        raise DataError(f"dataset {name_or_path!r}: expected a folder with train/<class>/<image>, found no folder")
    known = [*TASKS, *SOURCES, *folders_in(data_dir)]
    hint = suggest(name_or_path, known) or "; `raysnap data ls` lists the names"
    raise DataError(f"dataset {name_or_path!r}: expected a folder in {data_dir} or a known name, found neither{hint}")


def read_folder(root: Path) -> Dataset:
    """List the dataset in the image folder `root`.

    Raises:
        DataError: there is no train split, fewer than two classes, a class with fewer than two training images, a
            class that only val or test has, an empty split, or a folder that can't be read.
    """
    num_ignored = Counter[str]()
    listing = {
        split: {name: _image_paths(folder, num_ignored) for name, folder in _class_folders(root / split).items()}
        for split in SPLITS
        if (root / split).is_dir()
    }
    _check_listing(root, listing)
    classes = tuple(listing["train"])
    labels = {name: label for label, name in enumerate(classes)}
    splits = {
        split: tuple(Item(path, labels[name]) for name, paths in by_class.items() for path in paths)
        for split, by_class in listing.items()
    }
    record = read_record(root) or {}
    digest = record.get("digest")
    name = root.name if root.name not in ("", "..") else root.resolve().name
    if num_ignored.total():
        log.info("%s: ignoring %d files that are not images", root, num_ignored.total())
    return Dataset(name, root, classes, splits, digest if isinstance(digest, str) else None, num_ignored.total())


def folders_in(data_dir: Path) -> list[str]:
    """Return the names of the dataset folders in `data_dir`, sorted; none where it does not exist."""
    if not data_dir.is_dir():
        return []
    return sorted(path.name for path in data_dir.iterdir() if not path.name.startswith(".") and path.is_dir())


def image_files(root: Path) -> list[Path]:
    """Return every image of every split of the folder `root`, sorted by split, class and file."""
    return [
        path
        for split in SPLITS
        if (root / split).is_dir()
        for folder in _class_folders(root / split).values()
        for path in _image_paths(folder, Counter())
    ]


def _class_folders(split_dir: Path) -> dict[str, Path]:
    """Return the class folders of a split by name, sorted; dot-folders and `__MACOSX` are not classes."""
    try:
        names = sorted(
            entry.name
            for entry in os.scandir(split_dir)
            if not entry.name.startswith(".") and entry.name != "__MACOSX" and entry.is_dir()
        )
    except OSError as error:
        raise DataError(f"{split_dir}: can't be listed: {error.strerror}; check its permissions") from None
    return {name: split_dir / name for name in names}


def _image_paths(class_dir: Path, num_ignored: Counter[str]) -> tuple[Path, ...]:
    """Return the images anywhere below `class_dir`, sorted; count other files by suffix in `num_ignored`."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: can't be listed: {error.strerror}; check its permissions") from None

    def walk() -> Iterator[Path]:
        for folder, subfolders, names in os.walk(class_dir, onerror=refuse):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            for name in names:
                if name.startswith("."):
                    continue
                path = Path(folder, name)
                suffix = path.suffix.lower()
                if suffix in IMAGE_SUFFIXES and path.is_file():
                    yield path
                else:
                    num_ignored[suffix] += 1

    return tuple(sorted(walk()))


def _check_listing(root: Path, listing: dict[str, dict[str, tuple[Path, ...]]]) -> None:
    where = f"dataset {root}"
    if "train" not in listing:
        found = ", ".join([*folders_in(root)[:3], *(["…"] if len(folders_in(root)) > 3 else [])])
        raise DataError(
            f"{where}: expected a folder train/ with a folder of images per class, found "
            f"{f'only {found}' if found else 'no folders'}; the layout is {{train,val,test}}/<class>/<image>"
        )
    train = listing["train"]
    if len(train) < 2:
        raise DataError(f"{where}/train: expected a folder per class, at least 2, found {len(train) or 'none'}")
    for name, paths in train.items():
        if len(paths) < MIN_TRAIN_IMAGES_PER_CLASS:
            images = "1 image" if len(paths) == 1 else "no images"
            raise DataError(
                f"{where}/train/{name}: expected at least {MIN_TRAIN_IMAGES_PER_CLASS} images, found {images}; "
                f"add some ({', '.join(sorted(IMAGE_SUFFIXES))}) or remove the folder"
            )
    for split in listing:
        unknown = sorted(set(listing[split]) - set(train))
        if unknown:
            raise DataError(
                f"{where}/{split}/{unknown[0]}: expected a class that train/ has too, found none there; "
                f"add it to train/ or remove it from {split}/{suggest(unknown[0], train)}"
            )
        if not any(listing[split].values()):
            raise DataError(f"{where}/{split}: expected images, found none; fill the folder or remove it")


def _refuse_other_drawing(name: str, root: Path, shapes: ShapesConfig) -> None:
    record = read_record(root) or {}
    wanted = drawing_record(name, shapes)
    keys = ("drawing_version", "drawing")
    if any(record.get(key) != wanted[key] for key in keys):
        found, expected = (", ".join(f"{key}={facts.get(key)}" for key in keys) for facts in (record, wanted))
        raise DataError(
            f"dataset {root}: expected {RECORD_NAME} with {expected}, found {found}; "
            f"delete that folder to draw it again, or choose another data_dir"
        )
