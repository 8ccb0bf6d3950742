"""Read one image file as upright RGB pixels, or say in one line why it can't be read.

Modes become RGB as in torchvision's default loader (`convert("RGB")`: transparency is dropped, palettes are resolved,
only the first frame counts), with two differences: EXIF's orientation is applied, so that a phone's photo is upright,
and samples of more than 8 bits are scaled to 8 (`datasets.deep_samples`), where `convert` clips them at 255.
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

from PIL import ExifTags, Image, UnidentifiedImageError

from raysnap.config.choices import Interpolation
from raysnap.datasets.deep_samples import Shallow, is_deep_colour, to_shallow
from raysnap.datasets.layout.suffixes import reads_heif
from raysnap.datasets.resizing import Resizing, resized_shape
from raysnap.errors import SYSTEM_LIMITS, DataError
from raysnap.system import num_cpus

# A decoder holds up to about 10 bytes per pixel: CMYK and RGB at once, or the coefficients of a progressive JPEG.
MAX_PIXELS = 100_000_000
# Pillow reads each chunk of a file as a whole, and an empty sparse file can claim any length.
MAX_FILE_BYTES = 512 * 1024 * 1024
MAX_DECODERS = 16
MAX_BAD_FRACTION = 0.001

# No format for which Pillow starts another program (EPS), and none that isn't found in image folders.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "MPO", "AVIF", "JPEG2000", "HEIF")

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

_FILTERS: dict[Interpolation, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

Result = TypeVar("Result")


def read_image(path: Path) -> Image.Image:
    """Return the image in `path`, decoded, upright and as RGB; the first frame where there are several.

    Raises as `read_shallow` does.
    """
    return read_shallow(path).image


def read_shallow(path: Path) -> Shallow:
    """Return the image in `path` as `read_image` does, and how many bits its samples use where they have more than 8.

    Raises:
        DataError: it is not a regular file, can't be opened or decoded, or exceeds `MAX_PIXELS` or `MAX_FILE_BYTES`.
        OSError: this process or machine is at a limit, such as that of open files; nothing is wrong with the image.
    """
    try:
        _check_file(path)
        # Pillow maps a file that it opens itself, and a map dies where a read fails: a full memory disk, a lost server.
        with path.open("rb") as file, Image.open(file, formats=readable_formats()) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(f"{path}: expected at most {MAX_PIXELS:,} pixels, found {width} x {height}")
            has_deep_colours = is_deep_colour(image)
            image.load()
            shallow = to_shallow(image, file if has_deep_colours else None)
            return shallow._replace(image=_upright(shallow.image, image))
    except UnidentifiedImageError:
        raise DataError(f"{path}: expected an image, found an unknown file format") from None
    except DECODING_ERRORS as error:
        if getattr(error, "errno", None) in SYSTEM_LIMITS:
            raise  # it would be the same for any other image
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(
            f"{path}: expected an image, found one that can't be decoded: {reason.splitlines()[0]}"
        ) from None


def resize(image: Image.Image, resizing: Resizing) -> Image.Image:
    """Return the image resized, equal to torchvision's `Resize` and so to timm's and transformers' bit for bit.

    Raises:
        DataError: the result would have more than `MAX_PIXELS` pixels, as that of a very long and thin image.
    """
    height, width = resized_shape(image.height, image.width, resizing)
    if height * width > MAX_PIXELS:
        raise DataError(
            f"expected an aspect ratio that fits {MAX_PIXELS:,} pixels, found {image.width} x {image.height}"
        )
    if (width, height) == image.size:
        return image
    return image.resize((width, height), _FILTERS[resizing.interpolation])


def num_bad_allowed(num_images: int, max_bad: float) -> int:
    """Return how many of `num_images` images may be bad: the fraction `max_bad`, but at least one unless that is 0.

    Raises:
        ValueError: `max_bad` is not a fraction.
    """
    if not 0 <= max_bad <= 1:
        raise ValueError(f"max_bad: expected a fraction from 0 to 1, found {max_bad}")
    return max(1, int(max_bad * num_images)) if max_bad else 0


def for_each_image(task: Callable[[int], Result], indices: Iterable[int]) -> list[Result]:
    """Return `task(index)` for every index, in order, on a thread per CPU; silence Pillow's warnings."""
    with catch_warnings():
        simplefilter("ignore")
        with ThreadPoolExecutor(min(MAX_DECODERS, num_cpus())) as pool:
            return list(pool.map(task, indices))


@cache
def readable_formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that the installed Pillow and its plugins can read."""
    Image.init()
    if reads_heif():
        import pillow_heif

        pillow_heif.register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_file(path: Path) -> None:
    """Check that a file is regular, not empty and not too large; opening a named pipe would block."""
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "a pipe, socket or device"
        raise DataError(f"{path}: expected an image, found {kind}")
    if facts.st_size == 0:
        raise DataError(f"{path}: expected an image, found an empty file")
    if facts.st_size > MAX_FILE_BYTES:
        raise DataError(f"{path}: expected at most {MAX_FILE_BYTES:,} bytes, found {facts.st_size:,}")


def _upright(image: Image.Image, original: Image.Image) -> Image.Image:
    """Turn an image upright as the original's EXIF says; leave it where there is no orientation that can be read."""
    try:
        transpose = _UPRIGHT.get(original.getexif().get(ExifTags.Base.Orientation, 1))
    except DECODING_ERRORS:
        return image
    return image if transpose is None else image.transpose(transpose)
