"""Samples of more than 8 bits: the upper 8 of the bits that an image uses, in every mode and form of file."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from raysnap.cli.dataset_tables import check_table
from raysnap.datasets.dataset import read_folder
from raysnap.datasets.deep_samples import num_bits_used
from raysnap.datasets.image_file import read_image, read_shallow
from raysnap.datasets.inspection import check_dataset
from tests.support.bad_images import png
from tests.support.image_folders import make_folder

GRAY = np.arange(255, dtype=np.uint16).reshape(5, 51) + 1
COLOURS = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], axis=2)
BITS = (8, 10, 12, 14, 16)


def with_bits(samples: np.ndarray, num_bits: int) -> np.ndarray:
    """Return 8-bit samples in the upper bits of `num_bits`, with noise below them."""
    noise = np.random.default_rng(0).integers(0, 2 ** (num_bits - 8), samples.shape)
    return (samples << (num_bits - 8)) + noise.astype(np.uint16)


def deep_png(samples: np.ndarray, colour: int) -> bytes:
    """Return a PNG of 16-bit samples `[H, W]` or `[H, W, C]`."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return png(samples.shape[1], samples.shape[0], bits=16, colour=colour, pixels=zlib.compress(rows))


def deep_tiff(samples: np.ndarray, order: str) -> bytes:
    """Return an uncompressed TIFF of 16-bit colours `[H, W, 3]` in the byte order `<` or `>`."""
    height, width, _ = samples.shape
    content = samples.astype(f"{order}u2").tobytes()
    head = 8
    depths = head + len(content)
    tags = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, depths), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, head),
        (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(content)), (284, 3, 1, 1),
    ]  # fmt: skip
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, kind, count)
        + (struct.pack(f"{order}HH", value, 0) if kind == 3 and count == 1 else struct.pack(f"{order}I", value))
        for tag, kind, count, value in tags
    )
    start = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, depths + 6)
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    return start + content + struct.pack(f"{order}HHH", 16, 16, 16) + directory


@pytest.mark.parametrize("num_bits", BITS)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "TIFF big-endian", "int32 TIFF", "float TIFF"])
def test_gray_of_few_bits_is_not_black(tmp_path, form, num_bits):
    samples = with_bits(GRAY, num_bits)
    kinds = {"TIFF big-endian": ">u2", "int32 TIFF": "i4", "float TIFF": "f4"}
    image = Image.fromarray((GRAY << (num_bits - 8) if "float" in form else samples).astype(kinds.get(form, "u2")))
    image.save(tmp_path / "it", form.split()[-1] if "endian" not in form else "TIFF")
    found, bits = read_shallow(tmp_path / "it")
    assert np.array_equal(np.asarray(found), np.stack([GRAY] * 3, axis=2))
    assert bits == num_bits


@pytest.mark.parametrize("num_bits", BITS)
@pytest.mark.parametrize("form", ["RGB PNG", "RGBA PNG", "LA PNG", "RGB TIFF", "RGB TIFF big-endian"])
def test_colours_of_few_bits_are_not_black(tmp_path, form, num_bits):
    samples = with_bits(GRAY[..., None] if form == "LA PNG" else COLOURS, num_bits)
    opaque = np.full((*samples.shape[:2], 1), 65535, np.uint16)
    contents = {
        "RGB PNG": lambda: deep_png(samples, 2),
        "RGBA PNG": lambda: deep_png(np.concatenate([samples, opaque], axis=2), 6),
        "LA PNG": lambda: deep_png(np.concatenate([samples, opaque], axis=2), 4),
        "RGB TIFF": lambda: deep_tiff(samples, "<"),
        "RGB TIFF big-endian": lambda: deep_tiff(samples, ">"),
    }
    (tmp_path / "it").write_bytes(contents[form]())
    found, bits = read_shallow(tmp_path / "it")
    expected = np.stack([GRAY] * 3, axis=2) if form == "LA PNG" else COLOURS
    assert np.array_equal(np.asarray(found), expected)
    assert bits == num_bits


@pytest.mark.parametrize(("largest", "num_bits"), [(0, 8), (255, 8), (256, 10), (4095, 12), (4096, 14), (2**31, 32)])
def test_bits_are_even_from_8_on(largest, num_bits):
    assert num_bits_used(largest) == num_bits


def test_counts_of_any_size_use_the_upper_quarter_at_least(tmp_path):
    for largest in (70_000, 3_000_000, 2**31 - 1):
        Image.fromarray(np.array([[0, largest]], dtype=np.int32)).save(tmp_path / "it.tif")
        assert 64 <= np.asarray(read_image(tmp_path / "it.tif")).max() <= 255


def test_an_image_that_lies_on_its_side_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    samples = with_bits(GRAY, 12)
    Image.fromarray(samples).save(tmp_path / "it.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / "it.png"))[..., 0], np.rot90(GRAY, -1))


def test_different_dark_images_are_different_pictures(tmp_path):
    root = make_folder(tmp_path / "depth", {"train/cat": 2, "train/dog": 2})
    for index, path in enumerate(sorted(root.rglob("*.png"))):
        Image.fromarray(with_bits(np.roll(GRAY, 7 * index), 8 + 4 * (index % 2))).save(path)
    result = check_dataset(read_folder(root))
    assert not result.copies and not result.label_conflicts
    assert result.num_bits == {8: 2, 12: 2}
    text = str(list(check_table(result).columns[1].cells))
    assert "of 8 bits" in text and "the upper 8 of the bits that an image uses are read; not equally bright" in text
