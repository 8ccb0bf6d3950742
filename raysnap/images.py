"""One image file as RGB pixels, or one line that says why not."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from warnings import catch_warnings, simplefilter

from PIL import Image, UnidentifiedImageError

from raysnap.errors import DataError

MAX_PIXELS = 100_000_000
MAX_DECODERS = 16

# What Pillow's decoders were seen to raise on hostile bytes.
DECODING_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, AttributeError, ArithmeticError,
    AssertionError, RuntimeError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip

Result = TypeVar("Result")


def read_image(path: Path) -> Image.Image:
    """The image in `path`, decoded and as RGB; the first frame where there are several, EXIF rotation ignored.

    Raises:
        DataError: it can't be opened or decoded, or has more than `MAX_PIXELS` pixels.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(f"{path}: expected at most {MAX_PIXELS:,} pixels, found {width} x {height}")
            return image.convert("RGB")
    except UnidentifiedImageError:
        found = "an empty file" if path.stat().st_size == 0 else "bytes of no known image format"
        raise DataError(f"{path}: expected an image, found {found}") from None
    except DECODING_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{path}: expected an image, found a fault in it: {reason.splitlines()[0]}") from None


def resize_shorter_side(image: Image.Image, resize_size: int) -> Image.Image:
    """The image with its shorter side `resize_size`, equal to torchvision's `Resize(resize_size)` bit for bit.

    Raises:
        DataError: it is so long and thin that the result would have more than `MAX_PIXELS` pixels.
    """
    width, height = image.size
    longer = int(resize_size * max(width, height) / min(width, height))
    new_width, new_height = (resize_size, longer) if width <= height else (longer, resize_size)
    if new_width * new_height > MAX_PIXELS:
        raise DataError(f"expected a side ratio that fits {MAX_PIXELS:,} pixels, found {width} x {height}")
    if (new_width, new_height) == (width, height):
        return image
    return image.resize((new_width, new_height), Image.Resampling.BILINEAR)


def for_each_image(task: Callable[[int], Result], indices: Iterable[int]) -> list[Result]:
    """`task` of every index, in order, on a thread per CPU; Pillow's warnings on odd files are kept quiet."""
    with catch_warnings():
        simplefilter("ignore")
        with ThreadPoolExecutor(min(MAX_DECODERS, num_cpus())) as pool:
            return list(pool.map(task, indices))


def num_cpus() -> int:
    """The CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
