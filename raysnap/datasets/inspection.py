"""A full check of one dataset, every byte and pixel of it: `data check`.

Duplicates are grouped by what they spoil: a picture in two splits inflates scores (a leak), one in two classes is a
wrong label, one twice in a class only counts double. Two files are the same picture if their decoded RGB pixels are
equal, whatever their format or metadata.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple, TypeAlias

from blake3 import blake3
from PIL import ExifTags, Image

from raysnap.datasets.dataset import Dataset, Item
from raysnap.datasets.image_file import DECODING_ERRORS, for_each_image, read_shallow
from raysnap.datasets.image_folder import read_record
from raysnap.datasets.layout.account import LeftOut
from raysnap.datasets.layout.splits import SPLITS
from raysnap.datasets.layout.suffixes import Kind
from raysnap.datasets.published import SOURCES
from raysnap.datasets.splits import check_classes
from raysnap.datasets.text.text_file import read_text
from raysnap.errors import SYSTEM_LIMITS, DataError
from raysnap.progress import OnProgress

Equality: TypeAlias = Literal["bytes", "pixels"]

SMALL_PX = 64
CHUNK_BYTES = 2**20
PIXELS_AT_ONCE = 2**20
IMAGES_AT_ONCE = 512
MAX_PROGRESS_CALLS = 20

_IMAGENET_TRAIN = re.compile(r"n\d{8}_\d+\.jpe?g", re.IGNORECASE)
_IMAGENET_HELD_OUT = re.compile(r"ILSVRC2012_(val|test)_\d{8}\.jpe?g", re.IGNORECASE)


class FileFacts(NamedTuple):
    """What one file holds; where it is no good image, only `fault` is set and says why."""

    fault: str | None = None
    content: bytes = b""
    pixels: bytes = b""
    num_bits: int | None = None
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
    """Files that hold the same picture, sorted by split, class and name; `equal` says what is the same in them."""

    equal: Equality
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Spread:
    """Minimum, median and maximum of some numbers."""

    min: float
    median: float
    max: float


@dataclass(frozen=True)
class CheckResult:
    """What a full check of one dataset found; of bad files only the reason is known.

    Attributes:
        counts: images per split and class, bad ones too.
        left_out: files that are not part of the dataset, with reasons.
        notes: how the folder was understood, where it could be understood otherwise.
        faults: what keeps a job from using a split.
        bad: files that can't be decoded.
        leaks: pictures that are in more than one split.
        label_conflicts: pictures that are in more than one class of one split.
        copies: pictures that appear more than once in one class of one split.
        modes: good images per Pillow mode: RGB, L (gray), CMYK, RGBA, …
        num_bits: good images of more than 8 bits per sample by the number of bits that they use, of which the upper 8
            are read: see `datasets.deep_samples`.
        formats: good images per file format, whatever their names end in.
        width_px: widths of the good images, as stored; None where there are none.
        num_rotated: number of good images that EXIF says to rotate or mirror.
        num_small: number of good images with a side under `SMALL_PX` pixels.
        overlap: why the dataset shares images with ImageNet, or None where that is not known.
        num_imagenet_train_names: number of files named like images of ImageNet's train split.
        num_imagenet_held_out_names: number of files named like images of ImageNet's val or test split.
        recorded_counts: images per split as `dataset.json` states them, where they differ from those found.
        kind: what the items are; where they are texts, what is said of images is true of texts.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    faults: tuple[str, ...]
    bad: tuple[BadFile, ...]
    leaks: tuple[SamePicture, ...]
    label_conflicts: tuple[SamePicture, ...]
    copies: tuple[SamePicture, ...]
    modes: dict[str, int]
    num_bits: dict[int, int]
    formats: dict[str, int]
    width_px: Spread | None
    height_px: Spread | None
    num_rotated: int
    num_small: int
    overlap: str | None
    num_imagenet_train_names: int
    num_imagenet_held_out_names: int
    recorded_counts: dict[str, int] | None
    kind: Kind = "images"

    @property
    def is_sound(self) -> bool:
        """Whether no file is bad, no picture is in more than one split, and every split can be used."""
        return not self.bad and not self.leaks and not self.faults

    @property
    def num_images(self) -> int:
        """Number of images in all splits, including bad ones."""
        return sum(self.num_per_split.values())

    @property
    def num_per_split(self) -> dict[str, int]:
        """Number of images per split, including bad ones."""
        return {split: sum(by_class.values()) for split, by_class in self.counts.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values for JSON."""
        return {"ok": self.is_sound, "num_images": self.num_images, **asdict(self)}


def check_dataset(dataset: Dataset, on_progress: OnProgress | None = None) -> CheckResult:
    """Read and decode every file of a dataset on all CPUs; report counts, bad files, duplicates and image formats.

    Memory holds a few hundred bytes per file and one decoded image per CPU.
    """
    located = [(split, item) for split in SPLITS for item in dataset.splits.get(split, ())]
    facts = _inspect_files([item.path for _, item in located], dataset.kind, on_progress)
    good = [file for file in facts if file.fault is None]
    same = _same_pictures(located, facts)
    names = [item.path.name for _, item in located]
    record = read_record(dataset.root) or {}
    found = Counter(split for split, _ in located)
    return CheckResult(
        name=dataset.name,
        root=dataset.root,
        classes=dataset.classes,
        counts=_counts(dataset),
        left_out=dataset.left_out,
        notes=dataset.notes,
        faults=_faults(dataset),
        bad=tuple(BadFile(item.path, file.fault) for (_, item), file in zip(located, facts, strict=True) if file.fault),
        leaks=tuple(same["leaks"]),
        label_conflicts=tuple(same["label_conflicts"]),
        copies=tuple(same["copies"]),
        modes=dict(Counter(file.mode for file in good).most_common()),
        num_bits=dict(sorted(Counter(file.num_bits for file in good if file.num_bits is not None).items())),
        formats=dict(Counter(file.file_format for file in good).most_common()),
        width_px=_spread([file.width for file in good if file.width]),
        height_px=_spread([file.height for file in good if file.height]),
        num_rotated=sum(file.is_rotated for file in good),
        num_small=sum(0 < min(file.width, file.height) < SMALL_PX for file in good),
        overlap=_overlap(dataset, record),
        num_imagenet_train_names=sum(_IMAGENET_TRAIN.fullmatch(name) is not None for name in names),
        num_imagenet_held_out_names=sum(_IMAGENET_HELD_OUT.fullmatch(name) is not None for name in names),
        recorded_counts=_differing_counts(record, found),
        kind=dataset.kind,
    )


def _inspect_files(paths: Sequence[Path], kind: Kind, on_progress: OnProgress | None) -> list[FileFacts]:
    num_at_once = max(IMAGES_AT_ONCE, -(-len(paths) // MAX_PROGRESS_CALLS))
    facts: list[FileFacts] = []
    inspect = _inspect_file if kind == "images" else _inspect_text
    for start in range(0, len(paths), num_at_once):
        portion = paths[start : start + num_at_once]
        facts += for_each_image(lambda index: inspect(paths[index]), range(start, start + len(portion)))
        if on_progress and len(portion) < len(paths):
            on_progress("Check", len(facts), len(paths), "")
    return facts


def _inspect_file(path: Path) -> FileFacts:
    try:
        image, num_bits = read_shallow(path)
        pixels = _pixel_digest(image)
        content = blake3()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                content.update(chunk)
        with path.open("rb") as file, Image.open(file) as header:
            return FileFacts(
                content=content.digest(),
                pixels=pixels,
                num_bits=num_bits,
                file_format=header.format or "",
                mode=header.mode,
                width=header.width,
                height=header.height,
                is_rotated=_is_rotated(header),
            )
    except DataError as error:
        return FileFacts(str(error))
    except DECODING_ERRORS as error:
        limit = SYSTEM_LIMITS.get(getattr(error, "errno", None) or 0)
        if limit:
            raise DataError(f"{path}: can't be read: {limit}") from None
        return FileFacts(f"{path}: was readable a moment ago and no longer is: {error}")


def _inspect_text(path: Path) -> FileFacts:
    """Return what a text's file holds; texts that differ in the space around their words only are the same."""
    try:
        text = read_text(path)
    except DataError as error:
        return FileFacts(str(error))
    content, words = blake3(text.encode()), blake3(" ".join(text.split()).encode())
    return FileFacts(content=content.digest(), pixels=words.digest(), file_format="text", mode="UTF-8")


def _pixel_digest(image: Image.Image) -> bytes:
    """Return a digest of an RGB image's size and pixels, without copying a large image as a whole."""
    width, height = image.size
    digest = blake3(f"{width} {height}\n".encode())
    num_rows = max(1, PIXELS_AT_ONCE // width)
    for top in range(0, height, num_rows):
        strip = image if num_rows >= height else image.crop((0, top, width, min(top + num_rows, height)))
        digest.update(strip.tobytes())
    return digest.digest()


def _is_rotated(header: Image.Image) -> bool:
    if header.format == "PNG" and "exif" not in header.info:
        return False  # getexif() would decode the whole image to look for metadata after it
    try:
        return header.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    except DECODING_ERRORS:
        return False


def _same_pictures(located: Sequence[tuple[str, Item]], facts: Sequence[FileFacts]) -> dict[str, list[SamePicture]]:
    """Group good files with equal pixels by what they spoil, in the order of their first files."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, file in enumerate(facts):
        if file.fault is None:
            groups[file.pixels].append(index)
    same: dict[str, list[SamePicture]] = defaultdict(list)
    for indices in groups.values():
        if len(indices) == 1:
            continue
        splits = {located[i][0] for i in indices}
        labels = {located[i][1].label for i in indices}
        kind = "leaks" if len(splits) > 1 else "label_conflicts" if len(labels) > 1 else "copies"
        equal: Equality = "bytes" if len({facts[i].content for i in indices}) == 1 else "pixels"
        same[kind].append(SamePicture(equal, tuple(located[i][1].path for i in indices)))
    return same


def _faults(dataset: Dataset) -> tuple[str, ...]:
    """Return why splits can't be used, a line each."""
    faults = []
    for split in dataset.splits:
        try:
            check_classes(dataset, (split,))
        except DataError as error:
            faults.append(str(error))
    return tuple(faults)


def _counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    by_split = {split: Counter(item.label for item in items) for split, items in dataset.splits.items()}
    return {
        split: {name: by_label[label] for label, name in enumerate(dataset.classes)}
        for split, by_label in by_split.items()
    }


def _spread(numbers: Sequence[int]) -> Spread | None:
    return Spread(min(numbers), median(numbers), max(numbers)) if numbers else None


def _overlap(dataset: Dataset, record: dict[str, Any]) -> str | None:
    """Say why a dataset shares images with ImageNet: from `dataset.json`, or from what is known of its name."""
    if isinstance(record.get("overlap"), str):
        return record["overlap"]
    source = SOURCES.get(record["name"] if isinstance(record.get("name"), str) else dataset.name)
    return source.overlap if source else None


def _differing_counts(record: dict[str, Any], found: Counter[str]) -> dict[str, int] | None:
    recorded = record.get("counts")
    if not isinstance(recorded, dict) or all(found[split] == recorded.get(split, 0) for split in SPLITS):
        return None
    return {split: recorded.get(split, 0) for split in SPLITS}
