"""MATLAB 5 files as plain lists: the numbers, texts, cells and structures that datasets keep their lists in.

`scipy.io.loadmat` reads more, but crashes (a segmentation fault) on a file with a few flipped bytes and allocates what
an array's header asks for; these files are untrusted. Here nothing takes more memory than the unpacked file. The format
is described in "MAT-File Format", The MathWorks, chapter 1.
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import Any

import numpy as np

from raysnap.errors import DataError

MAX_BYTES = 64 << 20
MAX_DEPTH = 16
HEADER_BYTES = 128
MATRIX, COMPRESSED = 14, 15
CELL, STRUCTURE, TEXT = 1, 2, 4
NUMBERS = range(6, 16)
NUMBER_FORMS = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
TEXT_FORMS = {1: "latin-1", 2: "latin-1", 3: "utf-16", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}


def read_mat(content: bytes, where: str, variable: str) -> Any:
    """Return a variable: a text, or the list of an array's elements in column-major order.

    The elements of a cell array are texts and lists, those of a structure array are dicts of them.

    Raises:
        DataError: it is not a MATLAB 5 file, is damaged, unpacks to more than `MAX_BYTES`, or has no such variable.
    """
    try:
        order = {b"IM": "<", b"MI": ">"}.get(content[126:HEADER_BYTES])
        if order is None:
            raise ValueError("its header is not that of a MATLAB 5 file")
        for matrix in _top_matrices(content[HEADER_BYTES:], order):
            parts = _elements(matrix, order)
            if len(parts) > 2 and parts[2][1] == variable.encode():
                return _value(matrix, order)
    except (ValueError, IndexError, struct.error, zlib.error) as error:
        reason = ascii(str(error))[1:-1][:200]
        raise DataError(f"{where}: expected a MATLAB 5 file, found damage: {reason}; download it again") from None
    raise DataError(f"{where}: expected the variable {variable!r}, found none of that name; download the file again")


def _top_matrices(data: bytes, order: str) -> list[bytes]:
    """Return the file's variables, unpacked."""
    matrices, left_bytes = [], MAX_BYTES
    for kind, packed in _elements(data, order, is_top=True):
        elements = [(kind, packed)]
        if kind == COMPRESSED:
            inflater = zlib.decompressobj()
            unpacked = inflater.decompress(packed, left_bytes + 1)
            left_bytes -= len(unpacked)
            if left_bytes < 0:
                raise ValueError(f"it unpacks to more than {MAX_BYTES:,} bytes")
            if not inflater.eof:
                raise ValueError("a packed variable is truncated")
            elements = _elements(unpacked, order)
        matrices += [content for inner_kind, content in elements if inner_kind == MATRIX]
    return matrices


def _value(matrix: bytes, order: str, depth: int = 0) -> Any:
    if not matrix:
        return []
    if depth > MAX_DEPTH:
        raise ValueError(f"its arrays are nested more than {MAX_DEPTH} deep")
    (_, flags), (_, shape), _name, *rest = _elements(matrix, order)
    array_class = struct.unpack_from(f"{order}I", flags)[0] & 0xFF
    num_elements = math.prod(struct.unpack(f"{order}{len(shape) // 4}i", shape))
    if array_class == CELL:
        values = [_value(content, order, depth + 1) for kind, content in rest if kind == MATRIX]
    elif array_class == STRUCTURE:
        values = _structures(rest, order, depth)
    elif array_class == TEXT:
        return _text(*rest[0], order)
    elif array_class in NUMBERS:
        kind, content = rest[0]
        if kind not in NUMBER_FORMS:
            raise ValueError(f"it has numbers of kind {kind}")
        values = np.frombuffer(content, f"{order}{NUMBER_FORMS[kind]}").tolist()
    else:
        raise ValueError(f"it has an array of class {array_class}")
    if len(values) != num_elements:
        raise ValueError(f"it has {len(values)} elements in an array of {num_elements}")
    return values


def _structures(parts: list[tuple[int, bytes]], order: str, depth: int) -> list[dict[str, Any]]:
    (_, length), (_, names), *contents = parts
    name_bytes = struct.unpack_from(f"{order}i", length)[0]
    if name_bytes < 1:
        raise ValueError(f"it has field names of {name_bytes} bytes")
    fields = [names[i : i + name_bytes].split(b"\0")[0].decode() for i in range(0, len(names), name_bytes)]
    if not fields:
        return []
    values = [_value(content, order, depth + 1) for kind, content in contents if kind == MATRIX]
    return [dict(zip(fields, values[i : i + len(fields)], strict=True)) for i in range(0, len(values), len(fields))]


def _text(kind: int, content: bytes, order: str) -> str:
    if kind not in TEXT_FORMS:
        raise ValueError(f"it has text of kind {kind}")
    encoding = TEXT_FORMS[kind]
    if encoding in ("utf-16", "utf-32"):
        encoding += "-le" if order == "<" else "-be"
    return content.decode(encoding)


def _elements(data: bytes, order: str, is_top: bool = False) -> list[tuple[int, bytes]]:
    """Split data into its elements, each a kind and its content; up to four bytes of content lie within the tag."""
    elements, position = [], 0
    while position + 8 <= len(data):
        kind, num_bytes = struct.unpack_from(f"{order}2I", data, position)
        start = position + 8
        if kind >> 16:
            kind, num_bytes, start = kind & 0xFFFF, kind >> 16, position + 4
            if num_bytes > 4:
                raise ValueError(f"it has a small element of {num_bytes} bytes")
            position += 8
        else:
            position = start + num_bytes + (0 if is_top and kind == COMPRESSED else -num_bytes % 8)
        if start + num_bytes > len(data):
            raise ValueError(f"it has {len(data) - start} bytes of an element of {num_bytes}")
        elements.append((kind, data[start : start + num_bytes]))
    return elements
