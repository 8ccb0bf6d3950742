"""Which datasets exist, which are missing and how to get them: `data ls`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from raysnap.datasets.dataset import BUILT_IN, folders_in, read_folder
from raysnap.datasets.layout.splits import SPLITS
from raysnap.datasets.published import SOURCES
from raysnap.datasets.shapes import TASKS as SHAPES
from raysnap.datasets.text.words import TASKS as WORDS
from raysnap.errors import DataError


@dataclass(frozen=True)
class DatasetSummary:
    """One line of `data ls`.

    Attributes:
        path: the dataset's folder; None where it does not exist.
        counts: images per split; empty where the folder does not exist or `fault` is set.
        official_counts: images per split of the whole dataset; empty where not known for sure.
        note: what the dataset is, or how to get it.
        page: web page where a person can get it, or None.
        num_files: number of files that `data prepare --download` fetches; 0 where it can't.
        licence: the terms in a sentence, or None.
        overlap: why it shares images with ImageNet, or None.
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
    """List every dataset known by name or found in `data_dir`, sorted by family and name; draw nothing.

    Raises:
        DataError: `data_dir` is a file.
    """
    if data_dir.exists() and not data_dir.is_dir():
        raise DataError(f"data_dir {data_dir}: expected a folder, found a file; choose another data_dir")
    known = [*BUILT_IN, *sorted(SOURCES)]
    others = [name for name in folders_in(data_dir) if name not in known]
    return [_summary(name, data_dir / name) for name in (*known, *others)]


def how_to_get(name: str) -> str:
    """Say in a few words how to get a named dataset: by a download, or by hand from its page."""
    source = SOURCES[name]
    if not source.is_downloadable:
        return f"get {', '.join(file.name for file in source.files)} from {source.page} and pass --source PATH"
    files = "its file" if len(source.files) == 1 else f"its {len(source.files)} files"
    return f"--download fetches {files}, or get them from {source.page} and pass --source PATH"


def _summary(name: str, root: Path) -> DatasetSummary:
    is_there = root.is_dir()
    known = _known(name, is_there)
    if not is_there:
        return known
    try:
        dataset = read_folder(root)
    except DataError as error:
        return replace(known, path=root, num_classes=0, fault=str(error))
    counts = {split: len(dataset.splits.get(split, ())) for split in SPLITS}
    return replace(known, path=root, counts=counts, num_classes=len(dataset.classes))


def _known(name: str, is_there: bool) -> DatasetSummary:
    """Return what is known of a name without reading its folder."""
    if name in BUILT_IN:
        note = "built in" if is_there else f"{'drawn' if name in SHAPES else 'written'} on first use"
        classes = SHAPES[name].classes if name in SHAPES else WORDS[name]
        return DatasetSummary(name, None, note, num_classes=len(classes))
    if name not in SOURCES:
        is_drawing = name.rpartition("-")[0] in BUILT_IN
        return DatasetSummary(name, None, "built in, another drawing" if is_drawing else "your own folder")
    source = SOURCES[name]
    return DatasetSummary(
        name,
        None,
        source.title if is_there else how_to_get(name),
        official_counts=dict(source.counts),
        num_classes=source.num_classes,
        page=source.page,
        num_files=len(source.files) if source.is_downloadable else 0,
        licence=source.licence,
        overlap=source.overlap,
    )
