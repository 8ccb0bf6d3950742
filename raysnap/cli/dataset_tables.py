"""What the data commands print: tables and lines made from results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rich.table import Table

from raysnap.cli.console import MAX_ROWS, simple_table
from raysnap.humanize import bytes_text, count_text, plural

if TYPE_CHECKING:
    from raysnap.datasets.disk_cache import CacheUse
    from raysnap.datasets.inspection import BadFile, CheckResult, SamePicture, Spread
    from raysnap.datasets.inventory import DatasetSummary
    from raysnap.datasets.layout.account import LeftOut

MAX_FEWEST = 3  # classes named as the smallest of a split
MAX_SAME_PATHS = 4  # files named of one picture


def datasets_table(summaries: Iterable[DatasetSummary]) -> Table:
    """Return known and local datasets, one per line; for one that is not here, with its published counts."""
    rows = []
    for dataset in summaries:
        here = "damaged" if dataset.fault else "yes" if dataset.path else "no"
        counts, official = _counts(dataset.counts), _counts(dataset.official_counts)
        if dataset.fault or not dataset.page:
            note = dataset.fault or dataset.note
        elif dataset.path:
            note = f"of {official}" if official and official != counts else ""
        else:
            note = f"--download, {plural(dataset.num_files, 'file')}" if dataset.num_files else "by hand"
        mark = " [ImageNet overlap]" if dataset.overlap else ""
        rows.append((dataset.name, here, dataset.num_classes or "", counts or official, f"{note}{mark}".strip()))
    return simple_table(["dataset", "here", "classes", "train/val/test", "note"], rows, numeric=["classes"])


def sources_table(summaries: Iterable[DatasetSummary]) -> Table:
    """Return where the published datasets come from, and their licences."""
    rows: list[tuple[str, str]] = []
    for dataset in summaries:
        if dataset.page:
            overlap = dataset.overlap and f"ImageNet overlap: {dataset.overlap}"
            lines = [line for line in (dataset.page, dataset.licence, overlap) if line]
            rows += zip([dataset.name, *[""] * len(lines)], lines, strict=False)
    return simple_table(["dataset", "source and licence"], rows)


def dataset_line(root: Path, num_classes: int, counts: Mapping[str, int]) -> str:
    """Describe a dataset on disk in one line."""
    return f"{root}: {plural(num_classes, 'class', 'classes')}, train/val/test {_counts(counts)}"


def class_counts_table(counts: Mapping[str, Mapping[str, int]]) -> Table:
    """Return images per class and split: a line per class, or a line per split if there are many classes."""
    names = list(next(iter(counts.values()), ()))
    if len(names) <= MAX_ROWS:
        rows = [(name, *(counts[split][name] for split in counts)) for name in names]
        return simple_table(["class", *counts], rows, numeric=list(counts))
    rows = []
    for split, by_class in counts.items():
        fewest = sorted((by_class[name], name) for name in names)[:MAX_FEWEST]
        sizes = by_class.values()
        shown = ", ".join(f"{name} {count}" for count, name in fewest)
        rows.append((split, sum(sizes), min(sizes), f"{median(sizes):g}", max(sizes), shown))
    columns = ["split", "items", "per class: min", "median", "max", "smallest classes"]
    return simple_table(columns, rows, numeric=columns[1:5])


def check_table(result: CheckResult) -> Table:
    """Return the findings of a dataset check, one per line, without those that have nothing to report."""
    num_good = result.num_images - len(result.bad)
    rows = [
        (f"good {result.kind}", f"{count_text(num_good)} of {count_text(result.num_images)}: {_tally(result.formats)}"),
        ("colours", _tally(result.modes)),
        ("deep colours", _deep(result.num_bits)),
        ("width", _spread(result.width_px)),
        ("height", _spread(result.height_px)),
        ("EXIF rotation", f"{plural(result.num_rotated, 'image')}; read upright"),
        ("small", f"{plural(result.num_small, 'image')} with a side under 64 px"),
        ("duplicates", _duplicates(result)),
        *_rows("read as", result.notes),
        *_rows("left out", _left_out(result.left_out)),
        ("dataset.json", f"records train/val/test {_counts(result.recorded_counts or {})}; files have changed since"),
        ("ImageNet", _overlap(result)),
    ]
    is_left_out = {
        "colours": not num_good,
        "deep colours": not result.num_bits,
        "width": result.width_px is None,
        "height": result.height_px is None,
        "EXIF rotation": not result.num_rotated,
        "small": not result.num_small,
        "dataset.json": result.recorded_counts is None,
        "ImageNet": result.kind != "images" or not _overlap(result),
    }
    return simple_table(["", ""], [row for row in rows if not is_left_out.get(row[0])])


def check_failures(result: CheckResult) -> list[dict[str, str]]:
    """Return a dataset's problems, one per row, at most `MAX_ROWS` of each kind."""

    def same_pictures(kind: str, groups: Sequence[SamePicture]) -> list[dict[str, str]]:
        rows = []
        for group in groups[:MAX_ROWS]:
            paths = [str(path.relative_to(result.root)) for path in group.paths]
            more = f" and {len(paths) - MAX_SAME_PATHS} more" if len(paths) > MAX_SAME_PATHS else ""
            shown = ", ".join(paths[:MAX_SAME_PATHS])
            rows.append({"where": str(result.root), "error": f"{kind}, the same {group.equal} in {shown}{more}"})
        return rows + _rest(groups)

    bad = [{"error": file.reason} for file in result.bad[:MAX_ROWS]] + _rest(result.bad)
    leaks = same_pictures("leak between splits", result.leaks)
    faults = [{"error": fault} for fault in result.faults]
    missed = [one for one in result.left_out if not one.is_expected]
    left_out = [{"where": f"{result.root}/{one.path}", "error": f"left out: {one.reason}"} for one in missed[:MAX_ROWS]]
    conflicts = same_pictures("in several classes", result.label_conflicts)
    return [*bad, *faults, *left_out, *_rest(missed), *leaks, *conflicts]


def _deep(num_bits: Mapping[int, int]) -> str:
    """Say how many images have more than 8 bits per sample, how many bits they use, and what is read of them."""
    used = _tally({f"of {bits} bits": count for bits, count in num_bits.items()})
    rule = "the upper 8 of the bits that an image uses are read"
    mixed = "; not equally bright, as they use different numbers of bits" if len(num_bits) > 1 else ""
    return f"{plural(sum(num_bits.values()), 'image')} above 8 bits, {used}; {rule}{mixed}"


def _rows(title: str, lines: Sequence[str]) -> list[tuple[str, str]]:
    """Return a row per line, of which the first has the title."""
    return [(title if index == 0 else " ", line) for index, line in enumerate(lines)]


def _left_out(left_out: Sequence[LeftOut]) -> list[str]:
    """Return how many files were left out for each reason, most files first."""
    counts: dict[str, int] = {}
    for one in left_out:
        counts[one.reason] = counts.get(one.reason, 0) + one.num_files
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    lines = [f"{plural(count, 'file')}: {reason}" for reason, count in ordered[:MAX_ROWS]]
    return [*lines, *(["…"] if len(ordered) > MAX_ROWS else [])]


def _rest(found: Sequence[SamePicture | BadFile | LeftOut]) -> list[dict[str, str]]:
    return [{"error": f"and {len(found) - MAX_ROWS} more; --json lists all"}] if len(found) > MAX_ROWS else []


def _tally(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count_text(count)} {name}" for name, count in counts.items()) or "none"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return ""
    if spread.min == spread.max:
        return f"{spread.min} px"
    return f"{spread.min} to {spread.max} px, median {spread.median:g}"


def _duplicates(result: CheckResult) -> str:
    """Return how many pictures occur more than once, the most serious kind first."""
    kinds = [
        (len(result.leaks), "in more than one split: a leak"),
        (len(result.label_conflicts), "in more than one class"),
        (len(result.copies), "several times in one class"),
    ]
    return "; ".join(f"{count_text(count)} {text}" for count, text in kinds if count) or "none"


def _overlap(result: CheckResult) -> str:
    """Return what is shared with ImageNet: what is known about the dataset, and what its file names suggest."""
    names = [
        (result.num_imagenet_train_names, "ImageNet training images"),
        (result.num_imagenet_held_out_names, "ImageNet validation or test images"),
    ]
    all_files = plural(result.num_images, "file")
    matches = [f"{count_text(count)} of {all_files} named like {kind}" for count, kind in names if count]
    if result.overlap and not matches:
        matches = ["no file is named like an image of ImageNet"]
    return "; ".join(filter(None, (result.overlap, *matches)))


def _counts(counts: Mapping[str, int]) -> str:
    return "/".join(str(counts.get(split, 0)) for split in ("train", "val", "test")) if counts else ""


def caches_table(caches: Iterable[CacheUse]) -> Table:
    """Return what is cached for datasets, the largest first."""
    rows = [
        (bytes_text(one.num_bytes), one.kind, one.dataset, one.path)
        for one in sorted(caches, key=lambda one: -one.num_bytes)
    ]
    return simple_table(["on disk", "kind", "dataset", "folder"], rows, numeric=["on disk"])
