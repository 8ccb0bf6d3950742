"""Readers of blocks: as many as the machine and the bound on memory have room for."""

from dataclasses import dataclass, field

import pytest

from raysnap.search.engine import block_shelf
from raysnap.search.engine.block_shelf import pick_num_readers


@dataclass
class Block:
    num_bytes: int


@dataclass
class Node:
    block: Block = field(default_factory=lambda: Block(30 * 2**20))


@pytest.mark.parametrize(
    ("memory_mb", "num_cpus", "expected"), [(10, 4, 1), (2000, 4, 2), (64000, 4, 4), (64000, 96, 8)]
)
def test_readers_fit_into_an_eighth_of_the_memory(memory_mb, num_cpus, expected, monkeypatch):
    monkeypatch.setattr(block_shelf, "num_cpus", lambda: num_cpus)
    assert pick_num_readers([Node(Block(2**20)), Node()], memory_mb * 2**20) == expected


def test_without_blocks_there_is_a_reader():
    assert pick_num_readers([], 0) == 1
