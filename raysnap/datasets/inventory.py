"""What datasets there are, what is missing and where it can be had: `data ls`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from raysnap.datasets.dataset import SPLITS, folders_in, read_folder
from raysnap.datasets.published import SOURCES
from raysnap.datasets.shapes import TASKS
from raysnap.errors import DataError


@dataclass(frozen=True)
class DatasetSummary:
    """One line of `data ls`.

    Attributes:
        path: the folder, or None when the dataset is not there.
        counts: images per split; empty when it is not there or `fault` is set.
        official_counts: images per split of the whole dataset; empty where not known for sure.
        note: what it is, or how to get it.
        page: where a person can get it, or None.
        num_files: how many files `data prepare --download` fetches; 0 where it can't.
        licence: the terms in a sentence, or None.
        overlap: why its images are shared with ImageNet, or None.
        fault: why the folder can't be used, or None.
    """

    name: str
    path: Path | None
    note: str
    counts: dict[str, int] = field(default_factory=dict)
    official_counts: dict[str, int] = field(default_factory=dict)
    num_classes: int = 0
    page: str | None = None
    num_files: int = 0
    licence: str | None = None
    overlap: str | None = None
    fault: str | None = None


def list_datasets(data_dir: Path) -> list[DatasetSummary]:
    """Every dataset known by name or found in `data_dir`, sorted by family and name; nothing is drawn.

    Raises:
        DataError: `data_dir` is a file.
    """
    if data_dir.exists() and not data_dir.is_dir():
        raise DataError(f"data_dir {data_dir}: expected a folder, found a file; choose another data_dir")
    known = [*TASKS, *sorted(SOURCES)]
    others = [name for name in folders_in(data_dir) if name not in known]
    return [_summary(name, data_dir / name) for name in (*known, *others)]


def how_to_get(name: str) -> str:
    """In a few words how a named dataset is had: by a download, or by hand from its page."""
    source = SOURCES[name]
    if not source.is_downloadable:
        return f"get {', '.join(file.name for file in source.files)} from {source.page} and pass --source PATH"
    files = "its file" if len(source.files) == 1 else f"its {len(source.files)} files"
    return f"--download fetches {files}, or get them from {source.page} and pass --source PATH"


def _summary(name: str, root: Path) -> DatasetSummary:
    is_there = root.is_dir()
    known, counts, num_classes, fault = _known(name, is_there), {}, 0, None
    if is_there:
        try:
            dataset = read_folder(root)
            counts = {split: len(dataset.splits.get(split, ())) for split in SPLITS}
            num_classes = len(dataset.classes)
        except DataError as error:
            fault = str(error)
    found = {"counts": counts, "num_classes": num_classes, "fault": fault} if is_there else {}
    return DatasetSummary(name=name, path=root if is_there else None, **known | found)


def _known(name: str, is_there: bool) -> dict[str, object]:
    """What is known of a name before its folder is looked into."""
    if name in TASKS:
        return {"note": "built in" if is_there else "drawn on first use", "num_classes": len(TASKS[name].classes)}
    if name not in SOURCES:
        return {"note": "a folder of yours"}
    source = SOURCES[name]
    return {
        "note": source.title if is_there else how_to_get(name),
        "official_counts": dict(source.counts),
        "num_classes": source.num_classes,
        "page": source.page,
        "num_files": len(source.files) if source.is_downloadable else 0,
        "licence": source.licence,
        "overlap": source.overlap,
    }
