"""MATLAB files that mean harm: each is refused or read, and none takes more memory than it fills."""

import random
import struct
import tracemalloc
import zlib
from contextlib import suppress

import numpy as np
import pytest

from raysnap.errors import DataError
from raysnap.prepare.mat_files import read_mat
from tests.support.official_sources import cars_lists, cells, dogs, mat

MOST_HELD_BYTES = 160 << 20
NUM_MUTANTS = 600
HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
CELL, STRUCT, DOUBLE = 1, 2, 6


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def matrix(array_class: int, shape: tuple[int, ...], *parts: bytes, name: bytes = b"x") -> bytes:
    flags = element(6, struct.pack("<II", array_class, 0))
    return element(14, flags + element(5, struct.pack(f"<{len(shape)}i", *shape)) + element(1, name) + b"".join(parts))


def nested(depth: int) -> bytes:
    content = matrix(CELL, (0, 0))
    for _ in range(depth):
        content = matrix(CELL, (1, 1), content)
    return content


def packed(content: bytes) -> bytes:
    content = zlib.compress(content)
    return struct.pack("<II", 15, len(content)) + content


FIELDS = element(5, struct.pack("<i", 8)) + element(1, b"field\0\0\0" * 1000)
HOSTILE = {
    "no MATLAB file": b"\x89HDF\r\n\x1a\n" + bytes(200),
    "nothing": b"",
    "header alone": HEADER,
    "cell array of 2^31": HEADER + matrix(CELL, (2**31 - 1, 1)),
    "cell array of a million in 100 bytes": HEADER + matrix(CELL, (1_000_000, 1)),
    "cell array of a million, packed": HEADER + packed(matrix(CELL, (1_000_000, 1))),
    "structures of a thousand fields": HEADER + matrix(STRUCT, (100_000, 1), FIELDS, bytes(1_000_000)),
    "cells in cells": HEADER + matrix(CELL, (1, 1), matrix(CELL, (2**30, 2))),
    "negative shape": HEADER + matrix(CELL, (-1, -1)),
    "nested 1,000 deep": HEADER + nested(1000),
    "numbers that are not there": HEADER + matrix(DOUBLE, (1000, 1000), element(9, bytes(8))),
    "zlib bomb": HEADER + packed(bytes(200_000_000)),
    "garbage, packed": HEADER + struct.pack("<II", 15, 100) + bytes(100),
    "element longer than the file": HEADER + struct.pack("<II", 14, 2**31) + bytes(100),
}


@pytest.mark.parametrize("do_compression", [True, False])
def test_what_scipy_saved_is_read(do_compression):
    def saved(value, name="x"):
        return read_mat(mat(do_compression, other=[9], **{name: value}), "here", name)

    names = [f"class {number}" for number in range(500)]
    assert saved(cells(names)) == names
    assert saved("naïve") == "naïve"
    assert saved([[1, 2], [3, 4]]) == [1, 3, 2, 4]
    assert saved(np.array([1.5, -2], dtype=np.float32)) == [1.5, -2]
    assert saved(np.array([2**60], dtype=np.uint64)) == [2**60]
    assert saved(np.zeros((0, 0))) == []
    lists = cars_lists(do_compression=do_compression)
    annotations = read_mat(lists["devkit/cars_train_annos.mat"], "here", "annotations")
    assert [(row["fname"], row["class"]) for row in annotations] == [
        (f"{number:05d}.jpg", [2 - number % 2]) for number in range(1, 7)
    ]


@pytest.mark.parametrize(("mark", "order"), [(b"IM", "<"), (b"MI", ">")])
def test_either_byte_order_is_read(mark, order):
    def part(kind: int, form: str, *numbers: int) -> bytes:
        content = struct.pack(f"{order}{form}", *numbers)
        return struct.pack(f"{order}2I", kind, len(content)) + content

    name = struct.pack(f"{order}2I", 1, 8) + b"x1234567"
    content = part(6, "2I", 9, 0) + part(5, "2i", 1, 4) + name + part(3, "4h", 7, -7, 8, -8)
    content = struct.pack(f"{order}2I", 14, len(content)) + content
    assert read_mat(HEADER[:126] + mark + content, "here", "x1234567") == [7, -7, 8, -8]


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_with_little_memory(case):
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="^here.mat: expected ") as caught:
            read_mat(HOSTILE[case], "here.mat", "x")
        _, held_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(caught.value).isprintable()
    assert held_bytes < MOST_HELD_BYTES


def test_a_mutated_file_is_read_or_refused_and_nothing_else():
    rng = random.Random(0)
    lists = cars_lists(do_compression=False)
    sound = (lists["devkit/cars_meta.mat"], lists["devkit/cars_train_annos.mat"], dogs()["train_list.mat"])
    names = ("class_names", "annotations", "file_list")
    num_read = 0
    for number in range(NUM_MUTANTS):
        content = bytearray(sound[number % 3])
        for _ in range(rng.choice((1, 2, 8))):
            content[rng.randrange(128, len(content))] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
        with suppress(DataError):
            read_mat(bytes(content), "here.mat", names[number % 3])
            num_read += 1
    assert NUM_MUTANTS // 10 < num_read < NUM_MUTANTS
