"""What datasets there are, and whether one on disk is sound: `data ls` and `data check`."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from raysnap.converters import CONVERTERS
from raysnap.data import NAMED_DATASETS, SPLITS, Item, folders_in, open_dataset, read_folder
from raysnap.errors import DataError
from raysnap.images import for_each_image, read_image
from raysnap.shapes import TASKS


@dataclass(frozen=True)
class DatasetSummary:
    """One line of `data ls`.

    Attributes:
        path: the folder, or None when the dataset is not there.
        counts: images per split; empty when it is not there or `fault` is set.
        note: where it comes from, or how to get it.
        fault: why the folder can't be used, or None.
    """

    name: str
    path: Path | None
    counts: dict[str, int]
    num_classes: int
    note: str
    fault: str | None = None


@dataclass(frozen=True)
class CheckResult:
    """What a full look at one dataset found.

    Attributes:
        counts: images per split and class.
        num_ignored: files in class folders that are no images.
        bad: files that can't be decoded, each with the reason.
        duplicates: groups of byte-equal files that are in more than one split or class.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    num_ignored: int
    bad: tuple[tuple[Path, str], ...]
    duplicates: tuple[tuple[Path, ...], ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is bad and nothing of one split is in another."""
        return not self.bad and not self.duplicates


def list_datasets(data_dir: Path) -> list[DatasetSummary]:
    """Every dataset known by name or found in `data_dir`, sorted by family and name; nothing is drawn.

    Raises:
        DataError: `data_dir` is a file.
    """
    if data_dir.exists() and not data_dir.is_dir():
        raise DataError(f"data_dir {data_dir}: expected a folder, found a file; choose another data_dir")
    known = [*TASKS, *sorted(NAMED_DATASETS)]
    others = [name for name in folders_in(data_dir) if name not in known]
    return [_summary(name, data_dir) for name in (*known, *others)]


def check_dataset(name_or_path: str, data_dir: Path) -> CheckResult:
    """Counts, undecodable files and duplicates across splits or classes of one dataset; reads every byte of it.

    Raises:
        DataError: no such dataset, or one that nothing can be trained on.
    """
    dataset = open_dataset(name_or_path, data_dir)
    located = [(split, item) for split in SPLITS for item in dataset.splits.get(split, ())]
    verdicts = for_each_image(lambda i: _examine(located[i][1]), range(len(located)))
    groups: dict[str, list[tuple[str, Item]]] = defaultdict(list)
    for (split, item), (digest, _) in zip(located, verdicts, strict=True):
        if digest is not None:
            groups[digest].append((split, item))
    counts: dict[str, Counter[str]] = {split: Counter() for split in dataset.splits}
    for split, item in located:
        counts[split][dataset.classes[item.label]] += 1
    return CheckResult(
        name=dataset.name,
        root=dataset.root,
        classes=dataset.classes,
        counts={split: {name: counts[split][name] for name in dataset.classes} for split in counts},
        num_ignored=dataset.num_ignored,
        bad=tuple((i.path, fault) for (_, i), (_, fault) in zip(located, verdicts, strict=True) if fault is not None),
        duplicates=tuple(
            tuple(item.path for _, item in group)
            for group in groups.values()
            if len({(split, item.label) for split, item in group}) > 1
        ),
    )


def _summary(name: str, data_dir: Path) -> DatasetSummary:
    root = data_dir / name
    if name in TASKS:
        note = "built in, drawn on first use"
    elif name in CONVERTERS:
        note = f"{NAMED_DATASETS[name]}; `raysnap data prepare {name} --source PATH`"
    else:
        note = NAMED_DATASETS.get(name, "a folder of yours")
    if not root.is_dir():
        return DatasetSummary(name, None, {}, 0, note)
    try:
        dataset = read_folder(root)
    except DataError as error:
        return DatasetSummary(name, root, {}, 0, note, str(error))
    counts = {split: len(dataset.splits.get(split, ())) for split in SPLITS}
    return DatasetSummary(name, root, counts, len(dataset.classes), note)


def _examine(item: Item) -> tuple[str | None, str | None]:
    """The file's digest, and why it can't be decoded; each None where there is none."""
    try:
        digest = blake3(item.path.read_bytes()).hexdigest()
    except OSError as error:
        return None, f"{item.path}: can't be read: {error.strerror}"
    try:
        read_image(item.path)
    except DataError as error:
        return digest, str(error)
    return digest, None
