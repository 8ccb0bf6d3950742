"""What the data commands show on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from raysnap.cli.console import MAX_ROWS, simple_table
from raysnap.humanize import count_text, plural

MAX_FEWEST = 3


MAX_SAME_PATHS = 4


def datasets_table(summaries: Iterable[Any]) -> Table:
    """The datasets known or found, a line each; counts of what is not here are those of its makers."""
    rows = []
    for one in summaries:
        here = "damaged" if one.fault else "yes" if one.path else "no"
        counts, official = _counts(one.counts), _counts(one.official_counts)
        if one.fault or not one.page:
            note = one.fault or one.note
        elif one.path:
            note = f"of {official}" if official and official != counts else ""
        else:
            note = f"--download, {plural(one.num_files, 'file')}" if one.num_files else "by hand"
        mark = " [ImageNet overlap]" if one.overlap else ""
        rows.append((one.name, here, one.num_classes or "", counts or official, f"{note}{mark}".strip()))
    return simple_table(["dataset", "here", "classes", "train/val/test", "note"], rows, numeric=["classes"])


def sources_table(summaries: Iterable[Any]) -> Table:
    """Where the named datasets come from and on what terms, two lines each."""
    rows = [
        (one.name, "\n".join(filter(None, (one.page, one.licence, one.overlap and f"ImageNet overlap: {one.overlap}"))))
        for one in summaries
        if one.page
    ]
    return simple_table(["dataset", "where, and on what terms"], rows)


def dataset_line(root: Path, num_classes: int, counts: Mapping[str, int], num_ignored: int = 0) -> str:
    """A dataset on the disk in one line."""
    ignored = f"; {plural(num_ignored, 'file')} left out" if num_ignored else ""
    return f"{root}: {plural(num_classes, 'class', 'classes')}, train/val/test {_counts(counts)}{ignored}"


def class_counts_table(counts: Mapping[str, Mapping[str, int]]) -> Table:
    """Images per class and split: a line per class, or where there are many classes a line per split."""
    names = list(next(iter(counts.values()), ()))
    if len(names) <= MAX_ROWS:
        rows = [(name, *(counts[split][name] for split in counts)) for name in names]
        return simple_table(["class", *counts], rows, numeric=list(counts))
    rows = []
    for split, by_class in counts.items():
        fewest = sorted(names, key=lambda name, by_class=by_class: (by_class[name], name))[:MAX_FEWEST]
        sizes = by_class.values()
        shown = ", ".join(f"{name} {by_class[name]}" for name in fewest)
        rows.append((split, sum(sizes), min(sizes), f"{median(sizes):g}", max(sizes), shown))
    columns = ["split", "images", "per class: min", "median", "max", "fewest in"]
    return simple_table(columns, rows, numeric=columns[1:5])


def check_table(result: Any) -> Table:
    """What a look at a dataset found, a line each; only what there is something to say of."""
    num_good = result.num_images - len(result.bad)
    rows = [
        ("good images", f"{count_text(num_good)} of {count_text(result.num_images)}: {_tally(result.formats)}"),
        ("colours", _tally(result.modes)),
        ("width", _spread(result.width_px)),
        ("height", _spread(result.height_px)),
        ("EXIF rotation", f"{count_text(result.num_rotated)}; they are read upright"),
        ("small", f"{count_text(result.num_small)} with a side under 64 px"),
        ("same picture", _sameness(result)),
        ("dataset.json", f"promises train/val/test {_counts(result.recorded_counts or {})}: it was changed since"),
        ("ImageNet", _overlap(result)),
    ]
    silent = {
        "colours": not num_good,
        "width": not num_good,
        "height": not num_good,
        "EXIF rotation": not result.num_rotated,
        "small": not result.num_small,
        "dataset.json": result.recorded_counts is None,
        "ImageNet": not _overlap(result),
    }
    return simple_table(["", ""], [row for row in rows if not silent.get(row[0])])


def check_failures(result: Any) -> list[dict[str, str]]:
    """What is wrong with a dataset, a row each, leaks and bad files first; at most a few of a kind."""

    def told(kind: str, groups: Sequence[Any]) -> list[dict[str, str]]:
        rows = []
        for group in groups[:MAX_ROWS]:
            paths = [str(path.relative_to(result.root)) for path in group.paths]
            more = f" and {len(paths) - MAX_SAME_PATHS} more" if len(paths) > MAX_SAME_PATHS else ""
            shown = ", ".join(paths[:MAX_SAME_PATHS])
            rows.append({"where": str(result.root), "error": f"{kind}, the same {group.equal} in {shown}{more}"})
        return rows + _rest(groups)

    bad = [{"error": one.reason} for one in result.bad[:MAX_ROWS]] + _rest(result.bad)
    return [*bad, *told("leak between splits", result.leaks), *told("two classes", result.label_conflicts)]


def _rest(found: Sequence[Any]) -> list[dict[str, str]]:
    return [{"error": f"and {len(found) - MAX_ROWS} more; --json lists all"}] if len(found) > MAX_ROWS else []


def _tally(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count_text(count)} {name}" for name, count in counts.items()) or "none"


def _spread(spread: Any) -> str:
    if spread is None:
        return ""
    if spread.min == spread.max:
        return f"{spread.min} px"
    return f"{spread.min} to {spread.max} px, median {spread.median:g}"


def _sameness(result: Any) -> str:
    """How many pictures are there more than once, the serious kind first."""
    kinds = [
        (len(result.leaks), "in more than one split: a leak"),
        (len(result.label_conflicts), "in more than one class"),
        (len(result.copies), "more than once in a class"),
    ]
    return "; ".join(f"{count_text(count)} {text}" for count, text in kinds if count) or "none twice"


def _overlap(result: Any) -> str:
    """What is shared with ImageNet: what is known of the dataset, and what its file names say."""
    names = [
        (result.num_imagenet_train_names, "ImageNet training images"),
        (result.num_imagenet_held_out_names, "ImageNet validation or test images"),
    ]
    all_files = plural(result.num_images, "file")
    called = [f"{count_text(count)} of {all_files} named as {kind}" for count, kind in names if count]
    if result.overlap and not called:
        called = ["no file named as an image of ImageNet"]
    return "; ".join(filter(None, (result.overlap, *called)))


def _counts(counts: Mapping[str, int]) -> str:
    return "/".join(str(counts.get(split, 0)) for split in ("train", "val", "test")) if counts else ""
