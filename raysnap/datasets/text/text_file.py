"""Read one text file: UTF-8, without the mark that some editors begin it with."""

from __future__ import annotations

import codecs
from pathlib import Path

from raysnap.errors import DataError, describe_os_error

SUFFIX = ".txt"
MAX_TEXT_BYTES = 16 * 2**20


def read_text(path: Path) -> str:
    """Return what a file says.

    Raises:
        DataError: it can't be read, is no UTF-8, or is far longer than a text to be classified.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        reason = describe_os_error(error, "check its permissions")
        raise DataError(f"{path}: can't be read: {reason}") from None
    try:
        return decode(content)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def decode(content: bytes) -> str:
    """Return the text of a file's bytes.

    Raises:
        DataError: they are no UTF-8, or too many.
    """
    if len(content) > MAX_TEXT_BYTES:
        raise DataError(f"expected a text of at most {MAX_TEXT_BYTES // 2**20} MiB, found more")
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"expected UTF-8, found {error.reason} at byte {error.start}; convert or remove it") from None
