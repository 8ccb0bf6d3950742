"""Turn people's own data into a dataset: folders with a table of labels, parquet files, tar shards, tables of texts.

What `datasets.layout` reads as it is needs no preparation, but may be prepared, too: the choice between several
meanings is made here, once, and the result is a plain folder that has one. Images of a folder are hard-linked.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from raysnap.config.choices import ClassLevel
from raysnap.datasets.dataset import BUILT_IN, read_folder
from raysnap.datasets.image_folder import class_slug, new_folder, read_record
from raysnap.datasets.layout.account import Account
from raysnap.datasets.layout.recognise import Listing, recognise, recognise_table
from raysnap.datasets.layout.suffixes import PARQUET_SUFFIXES, TAR_SUFFIXES, TEXT_TABLE_SUFFIXES
from raysnap.datasets.layout.walk import walk
from raysnap.datasets.published import SOURCES
from raysnap.errors import DataError
from raysnap.humanize import suggest
from raysnap.prepare.convert import (
    CONVERTER_VERSION,
    PrepareResult,
    check_folder,
    refuse_other_source,
    result_of,
    write_images,
)
from raysnap.prepare.layouts import Plan, Target
from raysnap.prepare.packed import has_images, plan_parquet, plan_shards
from raysnap.prepare.source_tree import Tree, file_record
from raysnap.prepare.text_tables import plan_text_tables


def prepare_own(
    name: str,
    source: Path,
    data_dir: Path,
    *,
    labels: Path | None = None,
    label_column: str | None = None,
    text_column: str | None = None,
    level: ClassLevel | None = None,
    max_bad: int | None = None,
) -> PrepareResult:
    """Make the dataset `data_dir/<name>` from one's own files, unless it was made from them, in this way, before.

    Args:
        source: a folder of images or texts, of parquet files, of tar shards or of tables of texts; or one such file.
        labels: a table that names the images of a folder and their classes.
        label_column: the column of the classes in that table, in the parquet files or in tables of texts.
        text_column: the column of the texts in tables of them.
        level: which folders are the classes, where folders are nested.
        max_bad: how many bad images may be left out; None is one in a thousand, but at least one.

    Raises:
        DataError: the name is taken or no folder name; the files can't be understood; too many images are bad.
    """
    _check_name(name)
    if not source.exists():
        raise DataError(f"--source {source}: expected a folder of images, found no such file or folder")
    tree, plan, account, files = _plan(source, labels, (text_column, label_column), level)
    root = data_dir / name
    options = {"labels": labels and labels.name, "label_column": label_column, "class_folders": level}
    options |= {"text_column": text_column} if text_column else {}
    if root.exists():
        refuse_other_source(root, files)
        _refuse_other_options(root, options)
        return _result(root, replace(account, dataset=name))
    record = {
        "name": name,
        "files": files,
        "splits": plan.split_note,
        "options": options,
        "left_out": [asdict(one) for one in account.left_out],
        "notes": list(account.notes),
        "converter_version": CONVERTER_VERSION,
    }
    with new_folder(root, record) as folder:
        with warnings.catch_warnings():  # of Pillow, about odd files
            warnings.simplefilter("ignore")
            write_images(folder, tree, plan, max_bad)
        check_folder(folder, root)
    return _result(root, replace(account, dataset=name))


def _result(root: Path, account: Account) -> PrepareResult:
    bad = tuple((read_record(root) or {}).get("bad_images", ()))
    return replace(result_of(read_folder(root)), account=replace(account, bad=bad))


def _check_name(name: str) -> None:
    if Path(name).name != name or class_slug(name) != name or name.startswith("."):
        raise DataError(f"dataset {name!a}: expected a name that can be a folder's, found another; choose another NAME")
    hint = suggest(name, [*SOURCES, *BUILT_IN])
    if hint:
        raise DataError(
            f"dataset {name!r}: expected the name of a known dataset, or one that is unlike those for your own, found "
            f"neither{hint}"
        )


def _plan(
    source: Path, labels: Path | None, columns: tuple[str | None, str | None], level: ClassLevel | None
) -> tuple[Tree, Plan, Account, list[dict[str, Any]]]:
    """Return where the images are read, their places, the account of the source, and records of its files."""
    packed = _packed_files(source) if labels is None else []
    root = source if source.is_dir() else source.parent
    text_column, label_column = columns
    suffix = packed[0].suffix.lower() if packed else ""
    holds_texts = suffix in TEXT_TABLE_SUFFIXES or (suffix in PARQUET_SUFFIXES and not has_images(packed[0]))
    if text_column is not None and not holds_texts:
        raise DataError(f"--source {source}: expected tables of texts with --text-column, found none")
    if packed:
        if holds_texts:
            plan = plan_text_tables(packed, root, text_column, label_column)
        else:
            is_parquet = suffix in PARQUET_SUFFIXES
            plan = plan_parquet(packed, root, label_column) if is_parquet else plan_shards(packed, root)
        num_left_out = sum(one.num_files for one in plan.left_out)
        account = Account("", _counts(plan), num_left_out, plan.left_out, (), (), plan.kind)
        return Tree(str(source)), plan, account, [file_record(path) for path in packed]
    if not source.is_dir():
        raise DataError(
            f"--source {source}: expected a folder, a parquet file, a tar file or a table, found another file"
        )
    listing = recognise_table(source, labels, label_column) if labels else recognise(source, level)
    plan = _plan_listing(listing)
    num_left_out = sum(one.num_files for one in listing.left_out)
    account = Account("", _counts(plan), num_left_out, listing.left_out, (), listing.notes, listing.kind)
    tree = Tree(f"--source {source}", source, tuple(plan.targets))
    records = tree.records(plan.targets, ())
    return tree, plan, account, [*records, *([file_record(labels)] if labels else [])]


def _packed_files(source: Path) -> list[Path]:
    """Return the parquet files, tar shards or tables of a source that holds no items; none where it holds some."""
    packed = PARQUET_SUFFIXES | TAR_SUFFIXES | TEXT_TABLE_SUFFIXES
    if source.is_file():
        return [source] if source.suffix.lower() in packed else []
    folder, others = walk(source)
    if folder.num_images or walk(source, "texts")[0].filled:
        return []
    found = [source / one.path for one in others if Path(one.path).suffix.lower() in packed]
    kinds = {path.suffix.lower() for path in found}
    if len(kinds) > 1:
        listed = ", ".join(sorted(kinds))
        raise DataError(
            f"--source {source}: expected files of one kind, found {listed}; pass a folder with one of them"
        )
    return found


def _plan_listing(listing: Listing) -> Plan:
    """Plan the images of a listing; a file keeps its name, or gets that of its folders where two would share it."""
    targets: dict[str, Target] = {}
    for split, classes in listing.splits.items():
        for class_name, paths in classes.items():
            names = [path.rpartition("/")[2].casefold() for path in paths]
            is_plain = len(set(names)) == len(names)
            for path in paths:
                file_name = path.rpartition("/")[2] if is_plain else path.replace("/", "_")
                targets[path] = Target(split, class_name, class_name, file_name)
    return Plan(targets, "as in the source", kind=listing.kind)


def _counts(plan: Plan) -> dict[str, int]:
    counts: dict[str, int] = {}
    for target in plan.targets.values():
        counts[target.split] = counts.get(target.split, 0) + 1
    return counts


def _refuse_other_options(root: Path, options: dict[str, Any]) -> None:
    found = (read_record(root) or {}).get("options")
    if found != options:
        raise DataError(
            f"{root}: expected the dataset made with {options}, found one made with {found}; delete that folder to "
            "make it again"
        )
