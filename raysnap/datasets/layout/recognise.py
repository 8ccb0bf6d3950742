"""From a folder as people have it to a listing: which image is of which class and split.

A layout that has one meaning is read as what it is: splits by any of their usual names, a folder per class with or
without splits, one folder around it all, a flat folder with a table of labels. Any other is refused, in a line that
says how to make it usable. A folder without images whose folders of classes hold .txt files is one of texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from raysnap.config.choices import ClassLevel
from raysnap.datasets.layout.account import LeftOut
from raysnap.datasets.layout.splits import SPLITS, is_evaluation, split_called, split_mentioned
from raysnap.datasets.layout.suffixes import (
    ARROW_SUFFIXES,
    PACKED_SUFFIXES,
    PARQUET_SUFFIXES,
    TABLE_SUFFIXES,
    TAR_SUFFIXES,
    TEXT_TABLE_SUFFIXES,
    Kind,
    is_unread_image,
)
from raysnap.datasets.layout.tables import LabelTable, Matcher, read_table
from raysnap.datasets.layout.walk import Folder, join, walk
from raysnap.errors import DataError
from raysnap.humanize import plural

Classes: TypeAlias = dict[str, list[str]]

LAYOUT = "{train,val,test}/<class>/<image>"

# A folder of such a name groups images, and is no class where it is alone.
_PLAIN_NAMES = frozenset(("images", "image", "imgs", "img", "pictures", "photos", "data", "jpegimages", "jpeg", "jpg"))


# aclImdb's texts without a label, in train/ beside the folders of classes.
UNLABELLED = ("unsup",)


@dataclass(frozen=True)
class Listing:
    """What a folder holds; with `left_out`, every file of it.

    Attributes:
        kind: what the items are.
        splits: the images of each class, by split and class, each sorted; paths are below the folder.
        left_out: files that are not part of the dataset, sorted.
        notes: how the folder was understood, where that has to be said.
    """

    splits: dict[str, Classes]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...] = ()
    kind: Kind = "images"


@dataclass
class _Reading:
    """What is being read: what is left out and noted so far."""

    root: Path
    tree: Folder
    left_out: list[LeftOut]
    level: ClassLevel | None = None
    notes: list[str] = field(default_factory=list)
    kind: Kind = "images"

    @property
    def where(self) -> str:
        return f"dataset {self.root}"

    def leave_out(self, paths: Iterable[str], reason: str) -> None:
        self.left_out += [LeftOut(path, reason) for path in paths]

    def use(self, table: LabelTable) -> None:
        """Note that a table is read, and what it names that isn't there."""
        self.left_out = [
            LeftOut(one.path, "the table of labels", is_expected=True) if one.path == table.path else one
            for one in self.left_out
        ]
        if table.num_missing:
            listed = ", ".join([*table.missing, *(["…"] if table.num_missing > len(table.missing) else [])])
            num_missing = plural(table.num_missing, "file")
            self.notes.append(f"{table.path} names {num_missing} without an image here: {listed}")

    def listing(self, splits: dict[str, Classes]) -> Listing:
        """Return what was read."""
        ordered = {split: splits[split] for split in SPLITS if split in splits}
        return Listing(ordered, tuple(sorted(self.left_out)), tuple(self.notes), self.kind)


def recognise(root: Path, level: ClassLevel | None = None) -> Listing:
    """List the images of the folder `root` by split and class, and all its other files.

    Args:
        level: which folders are the classes where folders are nested: those that hold the images, or the outermost.

    Raises:
        DataError: the folder has no meaning as a dataset, or more than one.
    """
    tree, left_out = walk(root)
    reading = _Reading(root, tree, left_out, level)
    if not tree.num_images:
        reading = _read_texts(root, level) or reading
        tree = reading.tree
    _refuse_packed(reading)
    base = _without_wrappings(tree)
    parts = _split_folders(reading, base)
    return reading.listing(_read_splits(reading, base, parts) if parts else _read_unsplit(reading, base))


def _read_texts(root: Path, level: ClassLevel | None) -> _Reading | None:
    """Return what is read of a folder of texts; None where no folders of classes hold any."""
    tree, left_out = walk(root, "texts")
    if any(is_unread_image(Path(one.path).suffix.lower()) for one in left_out):
        return None
    tree = _without_unlabelled(tree, left_out)
    base = _without_wrappings(tree)
    parts = [folder for folder in base.filled if _is_split(folder)] or [base]
    if all(len(part.filled) < 2 for part in parts):
        return None
    return _Reading(root, tree, left_out, level, kind="texts")


def _without_unlabelled(folder: Folder, left_out: list[LeftOut]) -> Folder:
    """Return a folder without those of texts that have no label, which are left out."""
    folders = []
    for one in folder.folders:
        if one.name in UNLABELLED:
            left_out.append(LeftOut(one.path, "texts without a label", one.num_images))
        else:
            folders.append(_without_unlabelled(one, left_out))
    num_items = len(folder.images) + sum(one.num_images for one in folders)
    return replace(folder, folders=tuple(folders), num_images=num_items)


def recognise_table(root: Path, table_path: Path, label_column: str | None = None) -> Listing:
    """List the images of the folder `root` by what a table says of them; what it doesn't name is left out.

    Raises:
        DataError: the table can't be read, names none of the images, or has several columns of classes.
    """
    tree, left_out = walk(root)
    reading = _Reading(root, tree, left_out)
    images = tree.image_paths()
    try:
        place = table_path.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:  # it lies elsewhere
        place = str(table_path.resolve())
    table = read_table(root, place, Matcher(images), label_column=label_column, is_asked=True)
    return reading.listing(_by_tables(reading, images, [table] if table else []))


def _without_wrappings(tree: Folder) -> Folder:
    """Return the folder in which the dataset lies, where it is wrapped in folders that hold nothing else."""
    base = tree
    while not base.images and len(base.filled) == 1 and not _is_split(base.filled[0]) and base.filled[0].filled:
        (base,) = base.filled
    return base


def _is_split(folder: Folder) -> bool:
    return split_called(folder.name) is not None


def _split_folders(reading: _Reading, base: Folder) -> dict[str, Folder]:
    """Return the folders of the splits; none where the folder isn't divided into splits."""
    called = [folder for folder in base.folders if _is_split(folder) and (folder.num_images or folder.name in SPLITS)]
    if len(called) == 1 and called[0].images and not called[0].filled and len(base.filled) > 1:
        return {}  # a class that happens to be called like a split, such as vehicles called `train`
    parts: dict[str, Folder] = {}
    for folder in sorted(called, key=lambda one: is_evaluation(one.name)):
        split = split_called(folder.name)
        assert split is not None
        if is_evaluation(folder.name) and split in parts:
            split = "test"
        if split in parts:
            raise DataError(
                f"{reading.where}: expected one folder for {split}, found {parts[split].name} and {folder.name}; "
                "merge them or move one away"
            )
        parts[split] = folder
        if folder.name != split:
            reading.notes.append(f"{folder.path}/ is read as {split}")
    return parts


def _read_splits(reading: _Reading, base: Folder, parts: dict[str, Folder]) -> dict[str, Classes]:
    """Return the images of every split; what is beside the splits is left out."""
    if "train" not in parts:
        raise _nothing_to_train_on(reading, base)
    _leave_out_others(reading, base, parts)
    splits: dict[str, Classes] = {}
    for split, folder in sorted(parts.items(), key=lambda part: SPLITS.index(part[0])):
        flat = _flat_images(folder)
        known = frozenset(splits.get("train", ()))
        if not flat or any(only.name in known for only in folder.filled):
            splits[split] = _class_folders(reading, folder)
        elif tables := _find_tables(reading, base, folder, flat, split, known):
            splits |= _by_tables(reading, flat, tables, split)
        elif split == "test":
            reading.leave_out(flat, f"no label: {folder.path}/ has no folders of classes, and no table names it")
        else:
            raise DataError(
                f"{reading.where}/{folder.path}: expected a folder per class, at least 2, found none, but "
                f"{plural(len(flat), 'image')}; where a table names their classes, run `raysnap data prepare NAME "
                f"--source {reading.root} --labels FILE` and use NAME"
            )
    return splits


def _leave_out_others(reading: _Reading, base: Folder, parts: dict[str, Folder]) -> None:
    """Leave out the images that lie beside the splits."""
    reading.leave_out((join(base.path, name) for name in base.images), "beside the splits, in no folder of a class")
    chosen = {folder.path for folder in parts.values()}
    for other in base.filled:
        if other.path not in chosen:
            reason = f"a folder beside {parts['train'].path}/ that is called like no split"
            reading.left_out.append(LeftOut(other.path, reason, other.num_images))


def _read_unsplit(reading: _Reading, base: Folder) -> dict[str, Classes]:
    """Return the images of a folder without splits: a folder per class, or a table of labels."""
    if len(base.filled) < 2:
        flat = base.image_paths()
        tables = _find_tables(reading, base, base, flat, None) if flat else []
        if not tables:
            raise _nothing_to_train_on(reading, base)
        return _by_tables(reading, flat, tables)
    inner = next((one for one in base.filled if one.filled and all(map(_is_split, one.filled))), None)
    if inner is not None:
        raise DataError(
            f"{reading.where}: expected the splits or the classes of one dataset, found folders with splits of their "
            f"own, such as {inner.path}; pass {reading.root / inner.path}"
        )
    if reading.level is None:
        _refuse_other_table(reading, base)
    classes = _class_folders(reading, replace(base, folders=base.filled))
    without = [folder.name for folder in base.folders if not folder.num_images]
    if without:
        reading.notes.append(f"no class, as no image in it can be read: {', '.join(without[:5])}")
    reading.notes.append(f"no splits: its {len(classes)} folders are classes, and all images are for training")
    return {"train": classes}


def _refuse_other_table(reading: _Reading, base: Folder) -> None:
    """Refuse a folder whose table groups the images otherwise than its folders do."""
    images = base.image_paths()
    try:
        tables = _find_tables(reading, base, base, images, None)
    except DataError:
        return
    prefix = f"{base.path}/" if base.path else ""
    by_folder = {image: image.removeprefix(prefix).split("/")[0] for image in images}
    for table in tables:
        pairs = {(by_folder[image], label) for image, label in table.classes.items()}
        labels = {label for _, label in pairs}
        if len(labels) > 1 and not len(pairs) == len(labels) == len({folder for folder, _ in pairs}):
            raise DataError(
                f"{reading.where}: expected classes by folder ({', '.join(one.name for one in base.filled[:3])}, …) or "
                f"by a table, found that {table.path} differs from the folders; run `raysnap data prepare NAME "
                f"--source {reading.root}` with `--labels {reading.root / table.path}` or with `--class-folders outer`"
            )


def _flat_images(folder: Folder) -> list[str] | None:
    """Return the images of a folder that has no folders of classes; None where it has."""
    if not folder.filled:
        return folder.image_paths()
    if not folder.images and len(folder.filled) == 1 and not folder.filled[0].filled:
        (only,) = folder.filled
        return only.image_paths() if only.name.lower() in {*_PLAIN_NAMES, folder.name.lower()} else None
    return None


def _find_tables(
    reading: _Reading,
    base: Folder,
    folder: Folder,
    images: Sequence[str],
    split: str | None,
    known: frozenset[str] = frozenset(),
) -> list[LabelTable]:
    """Return the tables in or around a folder that say the classes of its images.

    Raises:
        DataError: the only one that names these images can be understood in several ways.
    """
    around = {base.path.rpartition("/")[0], base.path, folder.path, *(only.path for only in folder.filled[:1]), ""}
    matcher = Matcher(images)
    found, faults = [], []
    for one in reading.left_out:
        parent, _, name = one.path.rpartition("/")
        suffix = Path(name).suffix.lower()
        if suffix not in TABLE_SUFFIXES or parent not in around or "submission" in name.lower():
            continue
        if split is not None and split_mentioned(name) not in (None, split):
            continue
        try:
            table = read_table(reading.root, one.path, matcher, known)
        except DataError as fault:
            faults.append(fault)
        else:
            found += [] if table is None or not table.classes else [table]
    if faults and not found:
        raise faults[0]
    return found


def _by_tables(
    reading: _Reading, images: Sequence[str], tables: Sequence[LabelTable], split: str | None = None
) -> dict[str, Classes]:
    """Return the images by split and class as the tables say; the others are left out.

    Args:
        split: of all images; None takes what the tables say, or their names where there are several, or train.
    """
    chosen: dict[str, tuple[str, str, LabelTable]] = {}
    for table in tables:
        reading.use(table)
        called = (split_mentioned(table.path) if len(tables) > 1 else None) or "train"
        for image, label in table.classes.items():
            place = split or table.splits.get(image, called), label
            before = chosen.setdefault(image, (*place, table))
            if before[:2] != place:
                raise DataError(
                    f"{reading.where}: {image}: expected one class and split, found {before[1]!r} ({before[0]}) in "
                    f"{before[2].path} and {label!r} ({place[0]}) in {table.path}; choose a table: `raysnap data "
                    f"prepare NAME --source {reading.root} --labels FILE`"
                )
    names = ", ".join(table.path for table in tables)
    unlabelled = {image for table in tables for image in table.unlabelled}
    splits: dict[str, Classes] = {}
    for image in images:
        if image in chosen:
            in_split, label, _ = chosen[image]
            splits.setdefault(in_split, {}).setdefault(label, []).append(image)
        else:
            reading.leave_out([image], f"without a class in {names}" if image in unlabelled else f"not in {names}")
    return {name: dict(sorted(classes.items())) for name, classes in splits.items()}


def _class_folders(reading: _Reading, folder: Folder) -> Classes:
    """Return the images of each folder of a class; loose images are left out.

    Raises:
        DataError: folders of classes are nested, and nobody said which ones are the classes.
    """
    reading.leave_out((join(folder.path, name) for name in folder.images), "in no folder of a class")
    if reading.level == "inner":
        return _inner_classes(folder)
    if reading.level is None:
        _refuse_nested(reading, folder)
    for one in folder.filled:
        if one.images and one.filled:
            below = ", ".join(two.name for two in one.filled[:3])
            reading.notes.append(f"{one.path}: the images in folders below it ({below}) are of class {one.name}, too")
    return {one.name: one.image_paths() for one in folder.folders}


def _refuse_nested(reading: _Reading, folder: Folder) -> None:
    inside = [_unwrapped(one) for one in folder.filled]
    groups = [one for one in inside if not one.images and len(one.filled) > 1]
    if not groups or (len(inside) > 1 and len({tuple(two.name for two in one.filled) for one in inside}) == 1):
        return
    outer, inner = len(inside), sum(max(1, len(one.filled)) for one in inside)
    raise DataError(
        f"{reading.where}: expected images in folders of classes, found folders in them, such as "
        f"{groups[0].filled[0].path}: {outer} classes by the outer folders, {inner} by the inner; run `raysnap data "
        f"prepare NAME --source {reading.root} --class-folders outer` (or inner) and use NAME"
    )


def _unwrapped(folder: Folder) -> Folder:
    while not folder.images and len(folder.filled) == 1:
        (folder,) = folder.filled
    return folder


def _inner_classes(folder: Folder) -> Classes:
    """Return the images of each folder that holds images, called by its name or, where two share it, by its path."""
    holding: list[Folder] = []

    def collect(one: Folder) -> None:
        holding.extend([one] if one.images else [])
        for below in one.filled:
            collect(below)

    for one in folder.filled:
        collect(one)
    names = [one.name for one in holding]
    prefix = f"{folder.path}/" if folder.path else ""
    by_name = {
        one.name if names.count(one.name) == 1 else one.path.removeprefix(prefix).replace("/", "_"): [
            join(one.path, name) for name in one.images
        ]
        for one in holding
    }
    return dict(sorted(by_name.items()))


def _refuse_packed(reading: _Reading) -> None:
    """Refuse a folder whose images are in files of other kinds, in a line that makes them usable."""
    if reading.tree.num_images:
        return
    prepare = f"`raysnap data prepare NAME --source {reading.root}` makes a dataset of them; then use NAME"
    kinds = (
        (PARQUET_SUFFIXES, "parquet file", prepare),
        (TAR_SUFFIXES, "tar file", prepare),
        (TEXT_TABLE_SUFFIXES, "table", f"if it holds texts and their labels, {prepare}"),
        (ARROW_SUFFIXES, "arrow file", "write them as parquet (`to_parquet` of Hugging Face's datasets) and pass that"),
        (PACKED_SUFFIXES, "archive", "unpack it and pass the folder"),
    )
    for suffixes, kind, advice in kinds:
        packed = [one.path for one in reading.left_out if Path(one.path).suffix.lower() in suffixes]
        if packed:
            raise DataError(
                f"{reading.where}: expected a folder of images per class, found {plural(len(packed), kind)}, such as "
                f"{packed[0]}; {advice}"
            )


def _nothing_to_train_on(reading: _Reading, base: Folder) -> DataError:
    """Return the error that says what the folder holds instead."""
    names = [folder.name for folder in base.folders]
    found = f"only {', '.join([*names[:3], *(['…'] if len(names) > 3 else [])])}" if names else "no folders"
    missed = [one for one in reading.left_out if not one.is_expected]
    more = f" and {plural(len(missed), 'file')} left out ({missed[0].path}: {missed[0].reason})" if missed else ""
    images = f" but {plural(base.num_images, 'image')} and no table of labels" if not names and base.num_images else ""
    return DataError(
        f"{reading.where}: expected a folder train/ with a folder of images per class, found {found}{images}{more}; "
        f"the layout is {LAYOUT}"
    )
