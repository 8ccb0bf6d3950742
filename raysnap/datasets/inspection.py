"""A full look at one dataset, every byte and pixel of it: `data check`.

Duplicates are told apart by what they spoil: a picture in two splits makes scores too good, one in two classes is a
wrong label, one twice in a class only counts double. Two files are the same picture when their decoded RGB pixels are
equal, whatever their format or metadata.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from blake3 import blake3
from PIL import ExifTags, Image

from raysnap.datasets.dataset import SPLITS, Dataset, Item
from raysnap.datasets.image_file import DECODING_ERRORS, for_each_image, read_image
from raysnap.datasets.image_folder import read_record
from raysnap.datasets.published import SOURCES
from raysnap.errors import DataError
from raysnap.progress import OnProgress

SMALL_PX = 64
CHUNK_BYTES = 2**20
PIXELS_AT_ONCE = 2**20
IMAGES_AT_ONCE = 512
MAX_PROGRESS_CALLS = 20

_IMAGENET_TRAIN = re.compile(r"n\d{8}_\d+\.jpe?g", re.IGNORECASE)
_IMAGENET_HELD_OUT = re.compile(r"ILSVRC2012_(val|test)_\d{8}\.jpe?g", re.IGNORECASE)


class Facts(NamedTuple):
    """What one file is; `fault` says why it is no good image, and then only its place is known."""

    fault: str | None = None
    content: bytes = b""
    pixels: bytes = b""
    file_format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    is_rotated: bool = False


@dataclass(frozen=True)
class BadFile:
    """A file that can't be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class SamePicture:
    """Files that hold one picture, sorted by split, class and name; `equal` says how much of them is the same."""

    equal: Literal["bytes", "pixels"]
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Spread:
    """Smallest, middle and largest of some numbers."""

    min: float
    median: float
    max: float


@dataclass(frozen=True)
class CheckResult:
    """What a full look at one dataset found; of bad files nothing but their reason is known.

    Attributes:
        counts: images per split and class, bad ones too.
        num_ignored: files in class folders that are no images.
        bad: files that can't be decoded.
        leaks: pictures that are in more than one split.
        label_conflicts: pictures that are in more than one class of one split.
        copies: pictures that are more than once in one class of one split.
        modes: good images per Pillow mode: RGB, L (gray), CMYK, RGBA, …
        formats: good images per file format, whatever their names end in.
        width_px: of the good images, as stored; None where there are none.
        num_rotated: good images whose EXIF says that they are to be turned or mirrored.
        num_small: good images with a side under `SMALL_PX` pixels.
        overlap: why the dataset is known to share images with ImageNet, or None.
        num_imagenet_train_names: files called like images of ImageNet's train split.
        num_imagenet_held_out_names: files called like images of ImageNet's val or test split.
        recorded_counts: images per split that `dataset.json` promises, where they are others than found.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    num_ignored: int
    bad: tuple[BadFile, ...]
    leaks: tuple[SamePicture, ...]
    label_conflicts: tuple[SamePicture, ...]
    copies: tuple[SamePicture, ...]
    modes: dict[str, int]
    formats: dict[str, int]
    width_px: Spread | None
    height_px: Spread | None
    num_rotated: int
    num_small: int
    overlap: str | None
    num_imagenet_train_names: int
    num_imagenet_held_out_names: int
    recorded_counts: dict[str, int] | None

    @property
    def is_sound(self) -> bool:
        """Whether no file is bad and nothing of one split is in another."""
        return not self.bad and not self.leaks

    @property
    def num_images(self) -> int:
        """Images of all splits, bad ones too."""
        return sum(self.num_per_split.values())

    @property
    def num_per_split(self) -> dict[str, int]:
        """Images per split, bad ones too."""
        return {split: sum(by_class.values()) for split, by_class in self.counts.items()}

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON has it."""
        return {"ok": self.is_sound, "num_images": self.num_images, **asdict(self)}


def check_dataset(dataset: Dataset, on_progress: OnProgress | None = None) -> CheckResult:
    """Counts, bad files, duplicates and the facts people ask for; every file is read and decoded on all cores.

    Memory holds a few hundred bytes per file and as many decoded images as there are cores.
    """
    located = [(split, item) for split in SPLITS for item in dataset.splits.get(split, ())]
    facts = _all_facts([item.path for _, item in located], on_progress)
    good = [one for one in facts if one.fault is None]
    same = _same_pictures(located, facts)
    names = [item.path.name for _, item in located]
    record = read_record(dataset.root) or {}
    found = Counter(split for split, _ in located)
    return CheckResult(
        name=dataset.name,
        root=dataset.root,
        classes=dataset.classes,
        counts=_counts(dataset),
        num_ignored=dataset.num_ignored,
        bad=tuple(BadFile(item.path, one.fault) for (_, item), one in zip(located, facts, strict=True) if one.fault),
        leaks=tuple(same["leaks"]),
        label_conflicts=tuple(same["label_conflicts"]),
        copies=tuple(same["copies"]),
        modes=dict(Counter(one.mode for one in good).most_common()),
        formats=dict(Counter(one.file_format for one in good).most_common()),
        width_px=_spread([one.width for one in good]),
        height_px=_spread([one.height for one in good]),
        num_rotated=sum(one.is_rotated for one in good),
        num_small=sum(min(one.width, one.height) < SMALL_PX for one in good),
        overlap=_overlap(dataset, record),
        num_imagenet_train_names=sum(_IMAGENET_TRAIN.fullmatch(name) is not None for name in names),
        num_imagenet_held_out_names=sum(_IMAGENET_HELD_OUT.fullmatch(name) is not None for name in names),
        recorded_counts=_other_counts(record, found),
    )


def _all_facts(paths: Sequence[Path], on_progress: OnProgress | None) -> list[Facts]:
    num_at_once = max(IMAGES_AT_ONCE, -(-len(paths) // MAX_PROGRESS_CALLS))
    facts: list[Facts] = []
    for start in range(0, len(paths), num_at_once):
        portion = paths[start : start + num_at_once]
        facts += for_each_image(lambda i, portion=portion: _look_at(portion[i]), range(len(portion)))
        if on_progress and len(portion) < len(paths):
            on_progress("Check", len(facts), len(paths), "")
    return facts


def _look_at(path: Path) -> Facts:
    try:
        pixels = _pixel_digest(read_image(path))
        content = blake3()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                content.update(chunk)
        with Image.open(path) as header:
            return Facts(
                content=content.digest(),
                pixels=pixels,
                file_format=header.format or "",
                mode=header.mode,
                width=header.width,
                height=header.height,
                is_rotated=_is_rotated(header),
            )
    except DataError as error:
        return Facts(str(error))
    except DECODING_ERRORS as error:
        return Facts(f"{path}: was read a moment ago and can't be read again: {error}")


def _pixel_digest(image: Image.Image) -> bytes:
    """A digest over an RGB image's extent and pixels; of a large one no copy of all of it is made."""
    width, height = image.size
    digest = blake3(f"{width} {height}\n".encode())
    num_rows = max(1, PIXELS_AT_ONCE // width)
    for top in range(0, height, num_rows):
        strip = image if num_rows >= height else image.crop((0, top, width, min(top + num_rows, height)))
        digest.update(strip.tobytes())
    return digest.digest()


def _is_rotated(header: Image.Image) -> bool:
    if header.format == "PNG" and "exif" not in header.info:
        return False  # getexif() would decode all of it to look behind the pixels
    try:
        return header.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    except DECODING_ERRORS:
        return False


def _same_pictures(located: Sequence[tuple[str, Item]], facts: Sequence[Facts]) -> dict[str, list[SamePicture]]:
    """The groups of good files with equal pixels, in the order of their first files, by what they spoil."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, one in enumerate(facts):
        if one.fault is None:
            groups[one.pixels].append(index)
    same: dict[str, list[SamePicture]] = defaultdict(list)
    for indices in groups.values():
        if len(indices) == 1:
            continue
        splits = {located[i][0] for i in indices}
        labels = {located[i][1].label for i in indices}
        kind = "leaks" if len(splits) > 1 else "label_conflicts" if len(labels) > 1 else "copies"
        equal = "bytes" if len({facts[i].content for i in indices}) == 1 else "pixels"
        same[kind].append(SamePicture(equal, tuple(located[i][1].path for i in indices)))
    return same


def _counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    by_split = {split: Counter(item.label for item in items) for split, items in dataset.splits.items()}
    return {
        split: {name: by_label[label] for label, name in enumerate(dataset.classes)}
        for split, by_label in by_split.items()
    }


def _spread(numbers: Sequence[int]) -> Spread | None:
    return Spread(min(numbers), median(numbers), max(numbers)) if numbers else None


def _overlap(dataset: Dataset, record: dict[str, Any]) -> str | None:
    """What dataset.json says of images shared with ImageNet, or else what is known of the dataset of that name."""
    if isinstance(record.get("overlap"), str):
        return record["overlap"]
    source = SOURCES.get(record["name"] if isinstance(record.get("name"), str) else dataset.name)
    return source.overlap if source else None


def _other_counts(record: dict[str, Any], found: Counter[str]) -> dict[str, int] | None:
    recorded = record.get("counts")
    if not isinstance(recorded, dict) or all(found[split] == recorded.get(split, 0) for split in SPLITS):
        return None
    return {split: recorded.get(split, 0) for split in SPLITS}
