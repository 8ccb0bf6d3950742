"""Samples of more than 8 bits as 8 bits, by one rule: the upper 8 of the bits that an image uses are kept.

An image uses the fewest bits, an even number from 8 on, that hold its largest sample. Cameras, microscopes and depth
sensors store 8, 10, 12 or 14 bits in 16: such an image looks as it would if it were stored with the bits that it has,
and one of 8 bits as in a file of 8 bits. An image that uses all 16 keeps its upper 8, as Pillow reads colours.

Floats up to 1 have the range 0..1; other floats follow the rule for whole numbers. Samples below 0 have no natural
range, so that they are scaled from minimum to maximum.
"""

from __future__ import annotations

import re
import sys
from io import BufferedReader
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

MIN_BITS = 8

_RAW_16 = re.compile(r";16([LBN])$")


class Shallow(NamedTuple):
    """An RGB image, and how many bits the samples that it was made of use; None where they had 8 or fewer."""

    image: Image.Image
    num_bits: int | None


def to_shallow(image: Image.Image, file: BufferedReader | None = None) -> Shallow:
    """Return a decoded image of any mode as RGB of 8 bits.

    Args:
        file: what the image was read from, if it is 16-bit colour, of which Pillow has kept the upper 8 bits.
    """
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        gray_HW, num_bits = _to_8_bits(np.asarray(image))
        return Shallow(Image.fromarray(gray_HW).convert("RGB"), num_bits)
    if file is None:
        return Shallow(image if image.mode == "RGB" else image.convert("RGB"), None)
    return _colours(image, file)


def is_deep_colour(image: Image.Image) -> bool:
    """Return whether a file that was opened, and not decoded yet, has colours of 16 bits, of which Pillow drops 8."""
    return image.mode in ("RGB", "RGBA") and _raw_mode(image) is not None


def num_bits_used(largest: float) -> int:
    """Return the fewest bits, an even number from `MIN_BITS` on, that hold a sample."""
    needed = int(largest).bit_length()
    return max(MIN_BITS, needed + needed % 2)


def _to_8_bits(samples_HW: np.ndarray) -> tuple[np.ndarray, int]:
    """Return gray samples as uint8, and how many bits they use; samples that are not finite become 0."""
    is_float = samples_HW.dtype.kind == "f"
    if is_float:
        samples_HW = np.nan_to_num(samples_HW, posinf=0.0, neginf=0.0)
    low, high = float(samples_HW.min()), float(samples_HW.max())
    if low < 0:
        values = (samples_HW.astype(np.float64) - low) * (255 / (high - low) if high > low else 0.0)
        return np.rint(values).astype(np.uint8), num_bits_used(high - low)
    if is_float and high <= 1:
        return np.rint(samples_HW * np.float32(255)).astype(np.uint8), MIN_BITS
    num_bits = num_bits_used(high)
    if is_float:
        values = np.rint(samples_HW / np.float32(2 ** (num_bits - MIN_BITS)))
        return np.minimum(values, 255).astype(np.uint8), num_bits
    return (samples_HW >> (num_bits - MIN_BITS)).astype(np.uint8), num_bits


def _colours(image: Image.Image, file: BufferedReader) -> Shallow:
    """Return 16-bit colours as 8 bits; where they don't use their upper two bits, the lower 8 are read, too."""
    upper_HW3 = np.asarray(image)[..., :3]
    if upper_HW3.max() >= 64:
        return Shallow(image.convert("RGB"), 16)
    lower_HW3 = _lower_bytes(file)
    if lower_HW3 is None:
        return Shallow(image.convert("RGB"), 16)
    samples_HW3 = upper_HW3.astype(np.uint16) << 8 | lower_HW3
    num_bits = num_bits_used(samples_HW3.max())
    return Shallow(Image.fromarray((samples_HW3 >> (num_bits - MIN_BITS)).astype(np.uint8)), num_bits)


def _lower_bytes(file: BufferedReader) -> np.ndarray | None:
    """Return the lower 8 bits of 16-bit colours, `[height, width, 3]`; None where Pillow can't unpack them.

    Pillow takes the byte of each sample that its raw mode calls the upper one; with the other order of bytes, that is
    the lower one. Of gray with transparency it takes one byte of four, which read as RGBA are all there.
    """
    file.seek(0)
    with Image.open(file) as again:
        raw_mode = _raw_mode(again)
        if raw_mode is None:
            return None
        is_gray = raw_mode.startswith("LA;")
        other = "RGBA" if is_gray else _RAW_16.sub(";16L" if _is_big_endian(raw_mode) else ";16B", raw_mode)
        again.tile = [tile._replace(args=_with_raw_mode(tile.args, other)) for tile in again.tile]
        try:
            again.load()
        except ValueError:  # Pillow has no unpacker of that name
            return None
        bytes_HWC = np.asarray(again)
        return bytes_HWC[..., 1:2].repeat(3, axis=2) if is_gray else bytes_HWC[..., :3]


def _with_raw_mode(args: Any, raw_mode: str) -> Any:
    """Return the arguments of a decoder of Pillow with another raw mode."""
    return (raw_mode, *args[1:]) if isinstance(args, tuple) else raw_mode


def _raw_mode(image: Image.Image) -> str | None:
    """Return how the samples of an image lie in its file, where they have 16 bits; None where they haven't."""
    tiles = getattr(image, "tile", None)
    if not tiles or tiles[0].codec_name not in ("zip", "raw", "libtiff", "tiff_lzw", "tiff_adobe_deflate"):
        return None
    args = tiles[0].args
    raw_mode = args if isinstance(args, str) else args[0] if args and isinstance(args[0], str) else ""
    return raw_mode if _RAW_16.search(raw_mode) and not raw_mode.startswith("I;") else None


def _is_big_endian(raw_mode: str) -> bool:
    order = _RAW_16.search(raw_mode)
    assert order is not None
    return order[1] == "B" or (order[1] == "N" and sys.byteorder == "big")
