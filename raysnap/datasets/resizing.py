"""How an image becomes pixels of one size: what is resized to what with which filter, and where a crop begins.

Two preprocessings whose `Resizing` is equal read the same decoded pixels: mean and deviation are applied on the device.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from raysnap.config.choices import Interpolation

ResizeMode: TypeAlias = Literal["shorter_side", "squash"]
CropRounding: TypeAlias = Literal["even", "down"]


class Resizing(NamedTuple):
    """The pixels that are decoded and kept of an image.

    Attributes:
        size: length in pixels, of the shorter side, or of both.
        mode: whether the `shorter_side` gets this length, or both do, which squashes the image.
        interpolation: Pillow's filter, which spans as many pixels as it takes where images shrink.
        padded_size: edge of a centre crop that is larger than `size`, and has black borders; 0 where no crop is.
    """

    size: int
    mode: ResizeMode = "shorter_side"
    interpolation: Interpolation = "bilinear"
    padded_size: int = 0

    @property
    def kept_size(self) -> int:
        """Edge of the largest centre crop that is kept of a resized image."""
        return max(self.size, self.padded_size)

    @property
    def slot_bytes(self) -> int:
        """The most bytes that an image's kept part has: one row or column more than the largest crop."""
        return 3 * self.kept_size * (self.kept_size + 1)

    @property
    def label(self) -> str:
        """What names of files begin with; not the beginning of another label."""
        ways = [self.mode] * (self.mode != "shorter_side") + [self.interpolation] * (self.interpolation != "bilinear")
        return "-".join([*ways, f"{self.size}" + (f"in{self.padded_size}" if self.padded_size else "")])

    @property
    def text(self) -> str:
        """How the pixels came to be, in words."""
        side = "" if self.mode == "shorter_side" else f"{self.mode} "
        padding = f" in {self.padded_size}" if self.padded_size else ""
        return f"{side}{self.interpolation} {self.size}{padding}"


def resized_shape(height: int, width: int, resizing: Resizing) -> tuple[int, int]:
    """Return height and width of a resized image, as torchvision's `Resize` rounds them."""
    if resizing.mode == "squash":
        return resizing.size, resizing.size
    longer = int(resizing.size * max(width, height) / min(width, height))
    return (longer, resizing.size) if width <= height else (resizing.size, longer)


def kept_range(length: int, kept_size: int) -> tuple[int, int]:
    """Return where the kept part of a side begins, and its length: the centre, and one more pixel for odd crops."""
    first = max(0, (length - kept_size) // 2)
    return first, min(length - first, kept_size + 1)


def crop_start(length: int, crop_size: int, rounding: CropRounding) -> int:
    """Return where the centre crop of a side begins; below 0 where it is longer, and as many pixels of it are black.

    torchvision and timm round halves to `even` numbers, and half a pixel of a border down. transformers rounds `down`
    where it crops, and so a border up.
    """
    if rounding == "down":
        return (length - crop_size) // 2
    return round((length - crop_size) / 2.0) if length >= crop_size else -((crop_size - length) // 2)
