"""One image file as upright RGB pixels, or one line that says why not.

Modes become RGB as torchvision's default loader makes them (`convert("RGB")`: transparency is dropped, a palette is
looked up, of several frames the first is taken), with two differences. EXIF's orientation is honoured, so that a
phone's photo is upright. And what has more than 8 bits is scaled to 8, where `convert` cuts it off at 255.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TypeVar
from warnings import catch_warnings, simplefilter

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from raysnap.errors import DataError
from raysnap.system import num_cpus

# A decoder holds up to about 10 bytes per pixel: CMYK beside RGB, or the coefficients of a progressive JPEG.
MAX_PIXELS = 100_000_000
# Pillow reads a chunk of a file at once, and a sparse file of nothing can claim any length.
MAX_FILE_BYTES = 512 * 1024 * 1024
MAX_DECODERS = 16
MAX_BAD_FRACTION = 0.001

# No format that another program is started for (EPS), and none that isn't found in image folders.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "MPO", "AVIF", "JPEG2000")

# What Pillow's decoders were seen to raise on hostile bytes.
DECODING_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, AttributeError, ArithmeticError,
    AssertionError, RuntimeError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Result = TypeVar("Result")


def read_image(path: Path) -> Image.Image:
    """The image in `path`, decoded, upright and as RGB; the first frame where there are several.

    Raises:
        DataError: it is no regular file, can't be opened or decoded, or exceeds `MAX_PIXELS` or `MAX_FILE_BYTES`.
    """
    try:
        _refuse_no_file(path)
        with Image.open(path, formats=_formats()) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(f"{path}: expected at most {MAX_PIXELS:,} pixels, found {width} x {height}")
            image.load()
            return to_rgb(_upright(image))
    except UnidentifiedImageError:
        raise DataError(f"{path}: expected an image, found bytes of no known image format") from None
    except DECODING_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{path}: expected an image, found a fault in it: {reason.splitlines()[0]}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """A decoded image of any mode as RGB; samples of more than 8 bits are scaled to 8.

    Of 16 bits the upper 8 stay, as Pillow itself reads RGB of 16 bits; so do those of 32-bit integers that only use 16.
    Floats within 0..1 or 0..255 have that range. What lies outside is stretched from its least to its greatest.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        return _gray(np.asarray(image) >> 8)
    if image.mode in ("I", "F"):
        return _gray(_to_8_bits(np.asarray(image)))
    return image.convert("RGB")


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


def num_bad_allowed(num_images: int, max_bad: float) -> int:
    """How many of so many images may be bad: the fraction `max_bad` of them, but one at least unless that is 0."""
    if not 0 <= max_bad <= 1:
        raise ValueError(f"max_bad: expected a fraction from 0 to 1, found {max_bad}")
    return max(1, int(max_bad * num_images)) if max_bad else 0


def for_each_image(task: Callable[[int], Result], indices: Iterable[int]) -> list[Result]:
    """`task` of every index, in order, on a thread per CPU; Pillow's warnings on odd files are kept quiet."""
    with catch_warnings():
        simplefilter("ignore")
        with ThreadPoolExecutor(min(MAX_DECODERS, num_cpus())) as pool:
            return list(pool.map(task, indices))


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that the installed Pillow can read."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _refuse_no_file(path: Path) -> None:
    """Let regular files pass; opening a named pipe would wait for ever."""
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "no regular file"
        raise DataError(f"{path}: expected an image, found {kind}")
    if facts.st_size == 0:
        raise DataError(f"{path}: expected an image, found an empty file")
    if facts.st_size > MAX_FILE_BYTES:
        raise DataError(f"{path}: expected at most {MAX_FILE_BYTES:,} bytes, found {facts.st_size:,}")


def _upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says it is to be seen; as it is where EXIF says nothing or can't be read."""
    try:
        transpose = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    except DECODING_ERRORS:
        return image
    return image if transpose is None else image.transpose(transpose)


def _gray(samples_HW: np.ndarray) -> Image.Image:
    return Image.fromarray(samples_HW.astype(np.uint8)).convert("RGB")


def _to_8_bits(samples_HW: np.ndarray) -> np.ndarray:
    """Integers or floats of 32 bits as 0..255; what is not finite becomes black."""
    is_float = samples_HW.dtype.kind == "f"
    values = np.nan_to_num(samples_HW.astype(np.float32), copy=False, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if not is_float and low >= 0 and high <= 65_535:
        return samples_HW >> 8
    if is_float and low >= 0 and high <= 255:
        low, high = 0.0, 1.0 if high <= 1 else 255.0
    scale = 255 / (high - low) if high > low else 0.0
    values *= scale
    values -= low * scale
    return np.rint(values, out=values)
