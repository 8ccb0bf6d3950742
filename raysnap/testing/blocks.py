"""Small blocks and snapshots for tests of stores."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

from raysnap.models.tensor_bytes import block_digest
from raysnap.store.manifest import snapshot_id
from raysnap.store.store import SnapshotWrite, Store

Blocks: TypeAlias = list[tuple[str, dict[str, torch.Tensor]]]


def make_blocks(seed: int = 0, num_retrained: int = 3) -> Blocks:
    """Make three small blocks; the last `num_retrained` follow the seed, the others are the same for all seeds."""
    blocks = []
    for index, name in enumerate(("stem", "layer1.0", "head")):
        is_retrained = index >= 3 - num_retrained
        generator = torch.Generator().manual_seed(1000 * index + (seed if is_retrained else 0))
        blocks.append((name, {f"{name}.weight": torch.randn(4, 5, generator=generator)}))
    return blocks


def put(store: Store, seed: int = 0, num_retrained: int = 3, **fields: Any) -> SnapshotWrite:
    """Store the snapshot of these blocks."""
    return store.put_snapshot(architecture="resnet18", blocks=make_blocks(seed, num_retrained), num_classes=4, **fields)


def id_of(blocks: Blocks) -> str:
    """Return the id of the snapshot of these blocks."""
    return snapshot_id("resnet18", [(name, block_digest(tensors)) for name, tensors in blocks])


def read(store: Store, name_or_id: str) -> Blocks:
    """Read a snapshot's blocks."""
    return [(block.name, store.read_block(block.digest)) for block in store.manifest(name_or_id).blocks]


def equal(one: Blocks, other: Blocks) -> bool:
    """Return whether two snapshots' blocks are bit-equal."""
    return [name for name, _ in one] == [name for name, _ in other] and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        for (_, a), (_, b) in zip(one, other, strict=True)
    )
