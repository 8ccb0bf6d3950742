"""Decode once: the resized pixels of a dataset's images in a memory map that every process on the machine reads.

A cache is a folder of two sparse files, `pixels.bin` with a slot of equal length for every image of the dataset and
`index.bin` with a record per slot. A slot holds the central square of the resized image and one row or column more,
which is all that centre crops of any extent can ask for. The cache's name is a digest over every file's path, byte
count, times and inode, and over the preprocessing, so a changed dataset gets another cache.

Any number of processes may fill one cache at once without a lock: they write equal bytes. A record says "here" only
after the pixels reached the disk, so a crash leaves images to be decoded again and never wrong ones.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from blake3 import blake3
from PIL import Image

from raysnap.data import Item, image_files
from raysnap.errors import DataError
from raysnap.images import for_each_image, read_image, resize_shorter_side

FORMAT = 1
MAX_BAD_FRACTION = 0.001
FLUSH_BYTES = 256 * 1024 * 1024

_RECORD = np.dtype([("height", "<u4"), ("width", "<u4"), ("state", "<u4"), ("format", "<u4")])
_HERE = 1

log = logging.getLogger(__name__)


@dataclass
class PixelCache:
    """The pixels of a list of items, shorter side resized; indices are positions in that list.

    Attributes:
        num_decoded: images that this object decoded.
        decode_s: wall time that took, in seconds.
        bad: images that can't be decoded, by index, each with its file and the reason.
    """

    items: tuple[Item, ...]
    resize_size: int
    directory: Path
    _slots: np.ndarray
    _records: np.memmap
    _pixels: np.memmap
    num_decoded: int = 0
    decode_s: float = 0.0
    bad: dict[int, str] = field(default_factory=dict)

    @classmethod
    def open(cls, items: Sequence[Item], dataset_root: Path, resize_size: int) -> PixelCache:
        """The cache of the items' dataset, made empty where it is not there yet; nothing is decoded.

        Raises:
            DataError: an item is not in the dataset's folder, or no place for the cache can be written.
        """
        paths = image_files(dataset_root)
        slot_of = {path: slot for slot, path in enumerate(paths)}
        try:
            slots = np.array([slot_of[item.path] for item in items], dtype=np.int64)
        except KeyError as error:
            raise DataError(f"{error.args[0]}: expected an image of {dataset_root}, found none there now") from None
        directory = _make_cache(dataset_root, _cache_name(dataset_root, paths, resize_size), resize_size)
        num_slots = max(1, len(paths))
        slot_bytes = 3 * resize_size * (resize_size + 1)
        try:
            pixels = _map(directory / "pixels.bin", np.dtype(np.uint8), (num_slots, slot_bytes), "r")
            records = _map(directory / "index.bin", _RECORD, (num_slots,), "r+")
        except OSError as error:
            raise DataError(f"pixel cache {directory}: can't be opened: {error.strerror or error}; delete it") from None
        return cls(tuple(items), resize_size, directory, slots, records, pixels)

    def load(self, indices: Sequence[int]) -> list[int]:
        """Those of `indices` whose pixels are in the cache now; what was missing is decoded first.

        Raises:
            DataError: more than `max(1, 0.1 %)` of the images asked for are bad, or the disk is full.
        """
        indices = list(indices)
        state = self._records["state"][self._slots[indices]]
        missing = [i for i, is_here in zip(indices, state == _HERE, strict=True) if not is_here and i not in self.bad]
        if missing:
            self._decode(sorted(set(missing)))
        good = [i for i in indices if i not in self.bad]
        self._refuse_many_bad(indices)
        return good

    def read(self, indices: Sequence[int], crop_size: int) -> torch.Tensor:
        """The centre crops of images that `load` called good: uint8 `[len(indices), 3, crop_size, crop_size]`.

        Equal to torchvision's `Resize(resize_size)` and `CenterCrop(crop_size)` of the RGB image.

        Raises:
            DataError: an image is bad.
            ValueError: the crop is larger than the resized images' shorter side.
        """
        if not 0 < crop_size <= self.resize_size:
            raise ValueError(f"crop_size: expected 1 to {self.resize_size} (resize_size), found {crop_size}")
        good = self.load(indices)
        if len(good) < len(indices):
            bad = next(i for i in indices if i in self.bad)
            raise DataError(f"{self.bad[bad]}; leave out what load() leaves out")
        crops = torch.empty((len(good), 3, crop_size, crop_size), dtype=torch.uint8)
        slots = self._slots[good]
        records = self._records[slots]
        for crop, slot, height, width in zip(
            crops.numpy(), slots.tolist(), records["height"].tolist(), records["width"].tolist(), strict=True
        ):
            crop[:] = self._window(slot, height, width, crop_size)
        return crops

    def _window(self, slot: int, height: int, width: int, crop_size: int) -> np.ndarray:
        """The centre crop `[3, crop_size, crop_size]` of the image in a slot, as a view."""
        top, num_rows = _kept(height, self.resize_size)
        left, num_columns = _kept(width, self.resize_size)
        kept = self._pixels[slot, : 3 * num_rows * num_columns].reshape(3, num_rows, num_columns)
        # round() of a half goes to the even neighbour, in torchvision's CenterCrop as here.
        first_row = round((height - crop_size) / 2.0) - top
        first_column = round((width - crop_size) / 2.0) - left
        return kept[:, first_row : first_row + crop_size, first_column : first_column + crop_size]

    def _decode(self, missing: list[int]) -> None:
        """Decode images into their slots, in portions that are flushed before their records say so."""
        started_s = time.perf_counter()
        num_at_once = max(64, FLUSH_BYTES // self._pixels.shape[1])
        try:
            file = os.open(self.directory / "pixels.bin", os.O_WRONLY)
            try:
                for start in range(0, len(missing), num_at_once):
                    portion = missing[start : start + num_at_once]
                    shapes = for_each_image(lambda i: self._decode_one(i, file), portion)
                    _sync(file)
                    self._record(portion, shapes)
            finally:
                os.close(file)
        except OSError as error:
            raise DataError(
                f"pixel cache {self.directory}: can't be written: {error.strerror or error}; free space there"
            ) from None
        self.decode_s += time.perf_counter() - started_s

    def _decode_one(self, index: int, file: int) -> tuple[int, int] | None:
        """Height and width of the resized image whose pixels now are in its slot; None when it is bad."""
        path = self.items[index].path
        try:
            image = resize_shorter_side(read_image(path), self.resize_size)
        except DataError as error:
            message = str(error)
            self.bad[index] = message if message.startswith(str(path)) else f"{path}: {message}"
            return None
        _write_all(file, _central_bytes(image, self.resize_size), int(self._slots[index]) * self._pixels.shape[1])
        return image.height, image.width

    def _record(self, indices: list[int], shapes: list[tuple[int, int] | None]) -> None:
        good = [(i, *shape) for i, shape in zip(indices, shapes, strict=True) if shape is not None]
        for index, height, width in good:
            self._records[self._slots[index]] = (height, width, _HERE, FORMAT)
        self.num_decoded += len(good)

    def _refuse_many_bad(self, indices: list[int]) -> None:
        bad = [self.bad[i] for i in indices if i in self.bad]
        max_bad = max(1, int(MAX_BAD_FRACTION * len(indices)))
        if len(bad) > max_bad:
            more = f" (and {len(bad) - 3} more)" if len(bad) > 3 else ""
            raise DataError(
                f"{len(bad)} of {len(indices)} images are bad, expected at most {max_bad}: {'; '.join(bad[:3])}{more}; "
                f"remove or replace them (`raysnap data check` lists all)"
            )


def _kept(length: int, resize_size: int) -> tuple[int, int]:
    """Where the kept part of a side begins, and its length: the centre, and one pixel more for odd crops."""
    first = (length - resize_size) // 2
    return first, min(length - first, resize_size + 1)


def _central_bytes(image: Image.Image, resize_size: int) -> bytes:
    """The kept part of a resized image, planes first."""
    top, num_rows = _kept(image.height, resize_size)
    left, num_columns = _kept(image.width, resize_size)
    kept = np.asarray(image)[top : top + num_rows, left : left + num_columns]
    return kept.transpose(2, 0, 1).tobytes()


def _cache_name(dataset_root: Path, paths: list[Path], resize_size: int) -> str:
    digest = blake3(f"raysnap pixels {FORMAT} bilinear {resize_size}\n".encode())
    try:
        for path in paths:
            stat = path.stat()
            facts = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
            digest.update(f"{path.relative_to(dataset_root)}\0{facts}\n".encode(errors="surrogateescape"))
    except OSError as error:
        raise DataError(f"{error.filename}: was there a moment ago and can't be read: {error.strerror}") from None
    return f"{resize_size}-{digest.hexdigest()[:32]}"


def _make_cache(dataset_root: Path, name: str, resize_size: int) -> Path:
    """The cache's folder, beside the dataset or else in the user's cache folder; older ones of its kind are removed."""
    faults = []
    for parent in (dataset_root / ".raysnap" / "pixels", _user_cache_dir(dataset_root)):
        directory = parent / name
        try:
            is_new = not directory.is_dir()
            directory.mkdir(parents=True, exist_ok=True)
            for file_name in ("pixels.bin", "index.bin"):
                os.close(os.open(directory / file_name, os.O_RDWR | os.O_CREAT, 0o644))
        except OSError as error:
            faults.append(f"{parent}: {error.strerror}")
            continue
        if is_new:
            for stale_dir in parent.glob(f"{resize_size}-*"):
                if stale_dir.name != name:
                    log.info("removing the stale pixel cache %s", stale_dir)
                    shutil.rmtree(stale_dir, ignore_errors=True)
        return directory
    raise DataError(
        f"dataset {dataset_root}: expected a place for its pixel cache, found none that can be written "
        f"({'; '.join(faults)}); set XDG_CACHE_HOME to a folder that can"
    )


def _user_cache_dir(dataset_root: Path) -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    base = Path(home) if home else Path.home() / ".cache"
    identity = blake3(os.fsencode(dataset_root.resolve())).hexdigest()[:16]
    return base / "raysnap" / "pixels" / identity


def _map(path: Path, dtype: np.dtype, shape: tuple[int, ...], mode: str) -> np.memmap:
    """The file as a shared array; it grows to its length where it is shorter, which makes no process wait."""
    num_bytes = dtype.itemsize * int(np.prod(shape))
    if path.stat().st_size < num_bytes:
        os.truncate(path, num_bytes)
    return np.memmap(path, dtype=dtype, mode=mode, shape=shape)


def _write_all(file: int, content: bytes, offset: int) -> None:
    """Write at an offset, whatever short writes it takes; threads and processes may write beside each other."""
    view = memoryview(content)
    while view:
        num_written = os.pwrite(file, view, offset)
        view = view[num_written:]
        offset += num_written


def _sync(file: int) -> None:
    getattr(os, "fdatasync", os.fsync)(file)
