"""Image files that are bad, each with the reason it must be given, and odd ones that must be read all the same."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

Maker = Callable[[Path], object]


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng([width, height, seed]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


JPEG = encoded(noise_image(64, 48))
PROGRESSIVE = encoded(noise_image(256, 192), progressive=True)
PNG = encoded(noise_image(64, 48), "PNG")
GIF = encoded(noise_image(64, 48), "GIF")
TIFF = encoded(noise_image(64, 48), "TIFF")
WEBP = encoded(noise_image(64, 48), "WEBP")


def png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(width: int, height: int, *chunks: bytes, bits: int = 8, colour: int = 2, pixels: bytes = b"") -> bytes:
    """Return a PNG that claims this extent, with `chunks` before its pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    end = png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + end


@cache
def zeros(num_bytes: int) -> bytes:
    return zlib.compress(bytes(num_bytes), 9)


def gray_rows(width: int, height: int) -> bytes:
    """Return the compressed pixels of a black PNG of one bit per pixel."""
    return zeros(height * (1 + (width + 7) // 8))


def jpeg_of_extent(width: int, height: int) -> bytes:
    """Return a JPEG whose frame header claims another extent."""
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", height, width) + JPEG[at + 4 :]


def bytes_of(content: bytes) -> Maker:
    return lambda path: path.write_bytes(content)


def made_of(make: Callable[[], bytes]) -> Maker:
    """Return a maker of a file whose content takes long to make."""
    return lambda path: path.write_bytes(make())


def bomb_of(kind: bytes, head: bytes) -> Maker:
    """Return a maker of a PNG of one pixel with a compressed chunk of 300 MB."""
    return made_of(lambda: png(1, 1, png_chunk(kind, head + zeros(300_000_000)), pixels=ONE_PIXEL))


def bmp_of_extent(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 12, 0, 0, 54) + header + bytes(12)


def sparse_giant(path: Path) -> None:
    """Write a PNG's first bytes, then a chunk of a gigabyte of nothing: a few blocks on the disk."""
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**30) + b"tEXt")
    os.truncate(path, 2**30 + 64)


ONE_PIXEL = zlib.compress(bytes(4))
HTML = b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>"
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"

FAULT = "found one that can't be decoded: "
UNKNOWN = "found an unknown file format"

BAD: dict[str, tuple[Maker, str]] = {
    "empty": (bytes_of(b""), "an empty file"),
    "one byte": (bytes_of(b"\xff"), UNKNOWN),
    "zeros": (bytes_of(bytes(5000)), UNKNOWN),
    "garbage": (bytes_of(np.random.default_rng(0).bytes(5000)), UNKNOWN),
    "text": (bytes_of(b"not an image\n" * 50), UNKNOWN),
    "HTML": (bytes_of(HTML), UNKNOWN),
    "SVG": (bytes_of(SVG), UNKNOWN),
    "EPS, which another program would run": (bytes_of(EPS), UNKNOWN),
    "archive": (bytes_of(b"PK\x03\x04" + bytes(200)), UNKNOWN),
    "pointer of git-lfs": (bytes_of(b"version https://git-lfs.github.com/spec/v1\nsize 5\n"), UNKNOWN),
    "cut JPEG": (bytes_of(JPEG[: len(JPEG) // 2]), FAULT),
    "JPEG's header alone": (bytes_of(JPEG[:20]), "expected an image"),
    "cut progressive JPEG": (bytes_of(PROGRESSIVE[: len(PROGRESSIVE) // 3]), FAULT),
    "JPEG without its last byte": (bytes_of(JPEG[:-30]), FAULT),
    "JPEG of no width": (bytes_of(jpeg_of_extent(0, 48)), "expected an image"),
    "JPEG of no height": (bytes_of(jpeg_of_extent(64, 0)), "expected an image"),
    "JPEG that claims 65500 x 65500": (bytes_of(jpeg_of_extent(65_500, 65_500)), "exceeds limit|at most 100,000,000"),
    "JPEG that claims 9000 x 9000": (bytes_of(jpeg_of_extent(9_000, 9_000)[:-2]), FAULT),
    "cut PNG": (bytes_of(PNG[: len(PNG) // 2]), FAULT),
    "PNG with a wrong checksum": (bytes_of(PNG[:29] + b"\0\0\0\0" + PNG[33:]), "expected an image"),
    "PNG of no width": (bytes_of(png(0, 1, pixels=ONE_PIXEL)), "expected an image"),
    "PNG without pixels": (bytes_of(png(64, 64)), FAULT),
    "bomb of 30,000 x 30,000": (bytes_of(png(30_000, 30_000, bits=1, colour=0)), "exceeds limit|at most 100,000,000"),
    "bomb of 20,000 x 6,000": (
        made_of(lambda: png(20_000, 6_000, bits=1, colour=0, pixels=gray_rows(20_000, 6_000))),
        "at most 100,000,000 pixels, found 20000 x 6000",
    ),
    "PNG with a colour profile that is a bomb": (bomb_of(b"iCCP", b"name\0\0"), FAULT),
    "PNG with a text that is a bomb": (bomb_of(b"zTXt", b"name\0\0"), FAULT),
    "PNG with an international text that is a bomb": (bomb_of(b"iTXt", b"name\0\1\0\0\0"), FAULT),
    "PNG with a hundred texts that are bombs": (
        made_of(lambda: png(1, 1, *[png_chunk(b"zTXt", b"name\0\0" + zeros(1_000_000))] * 100, pixels=ONE_PIXEL)),
        FAULT,
    ),
    "sparse file of a gigabyte": (sparse_giant, "at most 536,870,912 bytes, found 1,073,741,888"),
    "cut GIF": (bytes_of(GIF[:40]), "expected an image"),
    "cut TIFF": (bytes_of(TIFF[: len(TIFF) // 2]), "expected an image"),
    "TIFF whose directory points to itself": (
        bytes_of(b"II*\0" + struct.pack("<I", 8) + struct.pack("<HI", 0, 8)),
        "expected an image",
    ),
    "TIFF that claims 30,000 x 30,000": (
        bytes_of(
            b"II*\0\x08\0\0\0" + struct.pack("<HHHIIHHII", 2, 256, 4, 1, 30_000, 257, 4, 1, 30_000) + bytes(4)
        ),
        "expected an image",
    ),
    "cut WebP": (bytes_of(WEBP[: len(WEBP) // 2]), "expected an image"),
    "BMP that claims 20,000 x 20,000": (bytes_of(bmp_of_extent(20_000, 20_000)), "exceeds limit|at most 100,000,000"),
    "BMP of negative width": (bytes_of(bmp_of_extent(-5, 5)), "expected an image"),
    "PPM that claims more than it has": (bytes_of(b"P6 9000 9000 255\n" + bytes(100)), FAULT),
    "PPM of a huge number": (bytes_of(b"P6 " + b"9" * 4000 + b" 1 255\n"), "expected an image"),
    "folder": (lambda path: path.mkdir(), "a folder"),
    "named pipe": (os.mkfifo, "found a pipe, socket or device"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "found a pipe, socket or device"),
    "link to itself": (lambda path: path.symlink_to(path), "symbolic links|No such file"),
    "link to nothing": (lambda path: path.symlink_to(path.with_name("nowhere")), "No such file"),
    "missing": (lambda path: None, "No such file"),
    "no permission": (lambda path: (path.write_bytes(JPEG), path.chmod(0)), "Permission denied"),
}  # fmt: skip
