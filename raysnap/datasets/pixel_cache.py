"""Decode once: what models see of a dataset's items, in a memory map that every process on the machine reads.

A cache is a folder of two files: `pixels.bin`, sparse, with a slot of equal length for every item of the dataset, and
`index.bin` with a record per slot. An image's slot holds the central square of the resized image and one more row or
column, which is all that centre crops of any size need; the black borders of a larger crop are added when it is read.
A text's slot holds its tokens: see `datasets.text.token_cache`. The cache's name is a digest of every file's path,
size, times and inode, and of the form of its slots, so a changed dataset gets another cache.

Any number of processes may fill one cache at once without a lock: they write equal bytes, start at different items
and skip what another has recorded meanwhile, so they share the work. A record is marked present only after its slot
reached the disk, so a crash leaves items to decode again, never wrong ones. The disk writes one portion while the next
is decoded.

Files are written by calls and only read through maps, and only where they were written: on a full disk a call fails,
whereas a map that needs a page kills the process.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
from blake3 import blake3

from raysnap.atomic import create_zeros, sync_data, write_all_at
from raysnap.datasets.dataset import Dataset, Item
from raysnap.datasets.decoding import DecodeJob, Outcome, Shape, decode_into
from raysnap.datasets.image_file import MAX_BAD_FRACTION, num_bad_allowed
from raysnap.datasets.resizing import CropRounding, Resizing, crop_start, kept_range
from raysnap.errors import DataError, describe_os_error
from raysnap.humanize import bytes_text, plural
from raysnap.system import cache_places, release_pages

if TYPE_CHECKING:
    import torch

FORMAT = 4  # 3 and before: 16-bit images that use few bits were black
LARGE_BYTES = 2**30  # of pixels that are written without a word
FLUSH_BYTES = 64 * 1024 * 1024

_RECORD = np.dtype([("height", "<u4"), ("width", "<u4"), ("state", "<u4"), ("format", "<u4")])
_PRESENT = 1

log = logging.getLogger(__name__)


class Form(Protocol):
    """What is kept of an item: its pixels of one size, or its tokens by one tokenizer."""

    @property
    def slot_bytes(self) -> int:
        """The most bytes that an item has."""

    @property
    def kept_size(self) -> int:
        """How long an item's sides are."""

    @property
    def label(self) -> str:
        """What names of caches begin with; not the beginning of another label."""

    @property
    def text(self) -> str:
        """How the items came to be, in words."""


@dataclass
class SlotCache(ABC):
    """What models see of a list of items, in one form; indices are positions in that list.

    Attributes:
        kind: of the cache, a `CacheKind`.
        title: what it is called.
        noun: what an item is called.
        unit: what `kept_size` counts.
        num_decoded: number of items that this object decoded.
        decode_s: wall time that took, in seconds.
        max_bad: fraction of the requested items that may be bad; one always may unless this is 0.
        bad: items that can't be decoded, by index, each with its file and the reason.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    noun: ClassVar[str]
    unit: ClassVar[str]

    items: tuple[Item, ...]
    form: Form
    directory: Path
    _slots: np.ndarray
    _records: np.memmap
    _content: np.memmap
    max_bad: float = MAX_BAD_FRACTION
    num_decoded: int = 0
    decode_s: float = 0.0
    bad: dict[int, str] = field(default_factory=dict)

    @classmethod
    def open(cls, items: Sequence[Item], dataset: Dataset, form: Form, max_bad: float = MAX_BAD_FRACTION) -> Self:
        """Open the cache of the items' dataset, creating an empty one if needed; decode nothing.

        Raises:
            DataError: an item is not one of the dataset's, or no place for the cache can be written.
            ValueError: `max_bad` is not a fraction.
        """
        num_bad_allowed(len(items), max_bad)
        paths = dataset.image_paths
        slot_of = {path: slot for slot, path in enumerate(paths)}
        try:
            slots = np.array([slot_of[item.path] for item in items], dtype=np.int64)
        except KeyError as error:
            raise DataError(f"{error.args[0]}: expected an item of {dataset.root}, found none there") from None
        num_slots = max(1, len(paths))
        name = _cache_name(dataset.root, paths, cls.kind, form)
        directory = _make_cache(dataset.root, name, cls.kind, form.label, num_slots)
        try:
            content = _map(directory / "pixels.bin", np.dtype(np.uint8), (num_slots, form.slot_bytes))
            records = _map(directory / "index.bin", _RECORD, (num_slots,))
        except OSError as error:
            raise DataError(
                f"{cls.title} {directory}: can't be opened: {describe_os_error(error, 'delete it')}"
            ) from None
        return cls(tuple(items), form, directory, slots, records, content, max_bad)

    def load(self, indices: Sequence[int]) -> list[int]:
        """Decode the missing ones of `indices`; return those that are in the cache now.

        Raises:
            DataError: more of the requested items are bad than `max_bad` allows, or the disk is full.
        """
        indices = list(indices)
        state = self._records["state"][self._slots[indices]]
        missing = [
            i for i, is_here in zip(indices, state == _PRESENT, strict=True) if not is_here and i not in self.bad
        ]
        if missing:
            self._decode(sorted(set(missing)))
        good = [i for i in indices if i not in self.bad]
        self._check_num_bad(indices)
        return good

    def num_missing(self, indices: Sequence[int]) -> int:
        """Return how many of the items are not in the cache yet."""
        return int(np.count_nonzero(self._records["state"][self._slots[list(indices)]] != _PRESENT))

    def release(self) -> None:
        """Let go of the memory that the items read so far take in this process."""
        release_pages(self._content.base)

    @abstractmethod
    def _fill(
        self, file: int, jobs: Sequence[DecodeJob], is_done: Callable[[DecodeJob], bool]
    ) -> Generator[tuple[DecodeJob, Outcome], None, None]:
        """Write each item into its slot and yield its shape, or one line on why it is bad, as `decode_into` does."""

    def _decode(self, missing: list[int]) -> None:
        """Decode items into their slots, in portions that are flushed before they are recorded."""
        started_s = time.perf_counter()
        slot_bytes = self._content.shape[1]
        num_at_once = max(64, FLUSH_BYTES // slot_bytes)
        first = random.SystemRandom().randrange(len(missing))
        indices_of: dict[DecodeJob, list[int]] = defaultdict(list)
        for i in missing[first:] + missing[:first]:
            indices_of[DecodeJob(str(self.items[i].path), int(self._slots[i]) * slot_bytes)].append(i)
        self._check_room(len(indices_of), slot_bytes)

        def is_done(job: DecodeJob) -> bool:
            return self._records["state"][job.offset // slot_bytes] == _PRESENT

        flushed: list[Future[None]] = []
        portion: list[tuple[int, Shape]] = []
        try:
            with (
                (self.directory / "pixels.bin").open("r+b", buffering=0) as file,
                (self.directory / "index.bin").open("r+b", buffering=0) as index,
                ThreadPoolExecutor(1) as flushing,
                closing(self._fill(file.fileno(), list(indices_of), is_done)) as outcomes,
            ):
                for job, outcome in outcomes:
                    if isinstance(outcome, str):
                        self.bad |= dict.fromkeys(indices_of[job], outcome)
                        continue
                    portion.append((job.offset // slot_bytes, outcome))
                    if len(portion) == num_at_once:
                        flushed.append(flushing.submit(self._flush, file.fileno(), index.fileno(), portion))
                        portion = []
                flushed.append(flushing.submit(self._flush, file.fileno(), index.fileno(), portion))
                for future in flushed:
                    future.result()
        except OSError as error:
            fault = describe_os_error(error, "free space there")
            raise DataError(f"{self.title} {self.directory}: can't be filled: {fault}") from None
        self.decode_s += time.perf_counter() - started_s

    def _check_room(self, num_items: int, slot_bytes: int) -> None:
        """Say what is about to be written where that is much, and refuse what the disk has no room for."""
        needed_bytes, free_bytes = num_items * slot_bytes, shutil.disk_usage(self.directory).free
        what = f"{plural(num_items, self.noun)} of {self.form.kept_size} {self.unit} take {bytes_text(needed_bytes)}"
        if needed_bytes > free_bytes:
            raise DataError(
                f"{self.title} {self.directory}: {what}, found {bytes_text(free_bytes)} free; free space there, or "
                "take fewer items or a smaller image_size"
            )
        if needed_bytes > LARGE_BYTES:
            log.warning("%s %s: %s of the disk", self.title, self.directory, what)

    def _flush(self, file: int, index: int, portion: list[tuple[int, Shape]]) -> None:
        """Flush the portion's slots to the disk, then record them."""
        sync_data(file)
        for slot, (height, width) in portion:
            record = np.array((height, width, _PRESENT, FORMAT), _RECORD)
            write_all_at(index, record.tobytes(), slot * _RECORD.itemsize)
        self.num_decoded += len(portion)

    def _check_num_bad(self, indices: list[int]) -> None:
        bad = [self.bad[i] for i in indices if i in self.bad]
        max_bad = num_bad_allowed(len(indices), self.max_bad)
        if len(bad) > max_bad:
            more = f" (and {len(bad) - 3} more)" if len(bad) > 3 else ""
            listed = f"{'; '.join(bad[:3])}{more}"
            raise DataError(
                f"{len(bad)} of {len(indices)} {self.noun}s are bad, expected at most {max_bad}: {listed}; "
                f"remove or replace them (`raysnap data check` lists all)"
            )


@dataclass
class PixelCache(SlotCache):
    """The pixels of a list of images, resized in one way.

    Attributes:
        is_busy: whether other threads of this process run Python while images are decoded.
    """

    kind: ClassVar[str] = "pixels"
    title: ClassVar[str] = "pixel cache"
    noun: ClassVar[str] = "image"
    unit: ClassVar[str] = "px"

    is_busy: bool = False

    def read(self, indices: Sequence[int], crop_size: int, rounding: CropRounding = "even") -> torch.Tensor:
        """Return the centre crops of images that `load` returned: uint8 `[len(indices), 3, crop_size, crop_size]`.

        They equal torchvision's `Resize` and `CenterCrop(crop_size)` of the upright RGB image; with the rounding
        `down`, those of transformers.

        Raises:
            DataError: an image is bad.
            ValueError: the crop is larger than what is kept of the resized images.
        """
        import torch  # filling a cache does without

        if not 0 < crop_size <= self._resizing.kept_size:
            raise ValueError(f"crop_size: expected 1 to {self._resizing.kept_size} px, found {crop_size}")
        good = self.load(indices)
        if len(good) < len(indices):
            bad = next(i for i in indices if i in self.bad)
            raise DataError(f"{self.bad[bad]}; read only what load() returns")
        crops = torch.empty((len(good), 3, crop_size, crop_size), dtype=torch.uint8)
        slots = self._slots[good]
        records = self._records[slots]
        for crop, slot, height, width in zip(
            crops.numpy(), slots.tolist(), records["height"].tolist(), records["width"].tolist(), strict=True
        ):
            self._copy_window(crop, slot, (height, width), rounding)
        return crops

    def _fill(
        self, file: int, jobs: Sequence[DecodeJob], is_done: Callable[[DecodeJob], bool]
    ) -> Generator[tuple[DecodeJob, Outcome], None, None]:
        return decode_into(file, jobs, self._resizing, is_done, is_busy=self.is_busy)

    @property
    def _resizing(self) -> Resizing:
        assert isinstance(self.form, Resizing)
        return self.form

    def _copy_window(self, crop_3SS: np.ndarray, slot: int, shape: Shape, rounding: CropRounding) -> None:
        """Copy the centre crop of the image in a slot, which has this height and width; what is outside is black."""
        crop_size = crop_3SS.shape[1]
        (top, num_rows), (left, num_columns) = (kept_range(length, self._resizing.kept_size) for length in shape)
        planes = self._content[slot, : 3 * num_rows * num_columns].reshape(3, num_rows, num_columns)
        first_row, first_column = (crop_start(length, crop_size, rounding) for length in shape)
        if first_row >= 0 and first_column >= 0:
            row, column = first_row - top, first_column - left
            crop_3SS[:] = planes[:, row : row + crop_size, column : column + crop_size]
            return
        crop_3SS.fill(0)
        rows, row = _overlap(first_row, shape[0], crop_size)
        columns, column = _overlap(first_column, shape[1], crop_size)
        row, column = row - top, column - left
        crop_3SS[:, rows, columns] = planes[
            :, row : row + rows.stop - rows.start, column : column + columns.stop - columns.start
        ]


def _overlap(first: int, length: int, crop_size: int) -> tuple[slice, int]:
    """Return which part of a crop that begins at `first` lies on a side, and where on the side that part begins."""
    start = max(0, -first)
    return slice(start, min(crop_size, length - first)), first + start


def cache_files(dataset_root: Path, forms: Iterable[Form]) -> list[Path]:
    """Return the files of the dataset's caches of these forms, wherever they lie."""
    return [
        path
        for kind in ("pixels", "tokens")
        for parent in cache_places(dataset_root, kind)
        for form in forms
        for path in sorted(parent.glob(f"{form.label}-*/*.bin"))
    ]


def _cache_name(dataset_root: Path, paths: list[Path], kind: str, form: Form) -> str:
    digest = blake3(f"raysnap {kind} {FORMAT} {form.text}\n".encode())
    try:
        for path in paths:
            stat = path.stat()
            facts = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
            digest.update(f"{path.relative_to(dataset_root)}\0{facts}\n".encode(errors="surrogateescape"))
    except OSError as error:
        raise DataError(f"{error.filename}: existed a moment ago and can't be read: {error.strerror}") from None
    return f"{form.label}-{digest.hexdigest()[:32]}"


def _make_cache(dataset_root: Path, name: str, kind: str, label: str, num_slots: int) -> Path:
    """Create the cache's folder, in the dataset or the user's cache folder; remove outdated ones of its kind."""
    faults = []
    for parent in cache_places(dataset_root, kind):
        directory = parent / name
        try:
            is_new = not directory.is_dir()
            directory.mkdir(parents=True, exist_ok=True)
            create_zeros(directory / "index.bin", num_slots * _RECORD.itemsize)
            os.close(os.open(directory / "pixels.bin", os.O_RDWR | os.O_CREAT, 0o644))
        except OSError as error:
            faults.append(f"{parent}: {error.strerror}")
            continue
        if is_new:
            for stale_dir in parent.glob(f"{label}-*"):
                if stale_dir.name != name:
                    log.info("removing the outdated cache %s", stale_dir)
                    shutil.rmtree(stale_dir, ignore_errors=True)
        return directory
    raise DataError(
        f"dataset {dataset_root}: expected a writable folder for its {kind[:-1]} cache, found none "
        f"({'; '.join(faults)}); set XDG_CACHE_HOME to a writable folder"
    )


def _map(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Map the file for reading, growing it first where it is shorter; no process has to wait for another."""
    num_bytes = dtype.itemsize * int(np.prod(shape))
    if path.stat().st_size < num_bytes:
        os.truncate(path, num_bytes)
    return np.memmap(path, dtype=dtype, mode="r", shape=shape)
