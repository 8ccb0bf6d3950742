"""IDX files, the format of MNIST and its relatives, as arrays."""

from __future__ import annotations

import struct

import numpy as np

from raysnap.errors import DataError
from raysnap.prepare.archives import unpack_gzip

MAX_IDX_BYTES = 1 << 30
IDX_IMAGES_MAGIC = 0x00000803
IDX_LABELS_MAGIC = 0x00000801


def read_idx(content: bytes, where: str, magic: int) -> np.ndarray:
    """Return the uint8 array of an IDX file, gzip-packed or not (http://yann.lecun.com/exdb/mnist, "file formats").

    Raises:
        DataError: it can't be read, is not that kind of IDX file, or is shorter or longer than its header says.
    """
    if content[:2] == b"\x1f\x8b":
        content = unpack_gzip(content, where, MAX_IDX_BYTES)
    num_dimensions = magic & 0xFF
    header_bytes = 4 * (1 + num_dimensions)
    if len(content) < header_bytes or struct.unpack(">I", content[:4])[0] != magic:
        raise DataError(
            f"{where}: expected an IDX file that begins with {magic:08x}, found {content[:4].hex() or 'nothing'}"
        )
    shape = struct.unpack(f">{num_dimensions}I", content[4:header_bytes])
    num_bytes = int(np.prod([int(length) for length in shape], dtype=object))
    if num_bytes > MAX_IDX_BYTES:
        raise DataError(f"{where}: expected at most {MAX_IDX_BYTES} bytes of content, found {num_bytes} announced")
    found_bytes = len(content) - header_bytes
    if found_bytes != num_bytes:
        found = "more" if found_bytes > num_bytes else found_bytes
        raise DataError(f"{where}: expected {num_bytes} bytes after the header, found {found}; download it again")
    return np.frombuffer(content, np.uint8, offset=header_bytes).reshape(shape)
