"""Which files are images that this installation reads, or texts, by their suffix, and what the others are."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Literal, TypeAlias

from PIL import features

Kind: TypeAlias = Literal["images", "texts"]
"""What a dataset's items are."""

TEXT_SUFFIXES = frozenset((".txt",))

# What readers of these formats call their files; Pillow always has the first group.
_ALWAYS = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff",
    ".mpo",
))  # fmt: skip
_OPTIONAL = {
    "webp": frozenset((".webp",)),
    "avif": frozenset((".avif", ".avifs")),
    "jpg_2000": frozenset((".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c")),
}
_HEIF = frozenset((".heic", ".heif", ".heics", ".heifs", ".hif"))

_OTHER_IMAGES = frozenset((
    ".tga", ".ico", ".icns", ".cur", ".psd", ".psb", ".xcf", ".svg", ".svgz", ".eps", ".ai", ".pcx", ".dds", ".sgi",
    ".qoi", ".jxl", ".jxr", ".wdp", ".exr", ".hdr", ".pfm", ".fits", ".fit", ".dcm", ".dicom", ".nii", ".czi", ".lif",
    ".nd2", ".svs", ".ndpi", ".dib", ".xbm", ".xpm", ".pict", ".emf", ".wmf",
    ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2", ".raf", ".pef", ".srw",
    ".raw", ".3fr", ".iiq", ".rwl", ".x3f", ".insp",
))  # fmt: skip
_EXPECTED = frozenset((
    ".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".html",
    ".htm", ".pdf", ".py", ".ipynb", ".sh", ".m", ".log", ".lock", ".mat", ".aae", ".xmp", ".names", ".data", ".cache",
    ".sha256", ".md5", ".url", ".torrent", ".xlsx", ".xls", ".docx", ".doc",
))  # fmt: skip
TABLE_SUFFIXES = frozenset((".csv", ".tsv", ".txt", ".json", ".jsonl"))
TEXT_TABLE_SUFFIXES = frozenset((".csv", ".tsv", ".jsonl"))
PARQUET_SUFFIXES = frozenset((".parquet",))
ARROW_SUFFIXES = frozenset((".arrow",))
TAR_SUFFIXES = frozenset((".tar",))
PACKED_SUFFIXES = frozenset((".zip", ".tgz", ".gz", ".rar", ".7z", ".bz2", ".xz", ".zst"))


def suffixes_of(kind: Kind) -> frozenset[str]:
    """Return the suffixes, in lower case, of a dataset's items."""
    return TEXT_SUFFIXES if kind == "texts" else image_suffixes()


@cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of the images that the installed Pillow and its plugins read."""
    optional = [suffixes for module, suffixes in _OPTIONAL.items() if features.check(module)]
    return _ALWAYS.union(*optional, _HEIF if reads_heif() else ())


@cache
def reads_heif() -> bool:
    """Whether the package that reads the photos of phones is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def is_unread_image(suffix: str) -> bool:
    """Return whether a file with this suffix (lower case) is an image that this installation doesn't read."""
    known = _OTHER_IMAGES.union(_HEIF, *_OPTIONAL.values())
    return suffix in known - image_suffixes()


def why_no_item(suffix: str, kind: Kind) -> tuple[str, bool]:
    """Say why a file with this suffix (lower case) is no item that is read, and whether nobody misses it."""
    if kind == "texts":
        return f"no text ({suffix or 'no suffix'})", suffix in _EXPECTED or not suffix
    if suffix in _HEIF:
        return "HEIC, which needs `pip install pillow-heif`, or conversion to JPEG", False
    if suffix in _OTHER_IMAGES or suffix in frozenset().union(*_OPTIONAL.values()):
        return f"{suffix[1:].upper()} images are not read; convert them to PNG", False
    if suffix in _EXPECTED:
        return f"no image ({suffix})", True
    return f"no image by its name ({suffix or 'no suffix'})", False
