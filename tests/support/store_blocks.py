"""Small blocks and snapshots for the store's tests."""

from pathlib import Path

import torch

from raysnap.store.store import SnapshotWrite, Store

Blocks = list[tuple[str, dict[str, torch.Tensor]]]


def make_blocks(seed: int = 0, num_retrained: int = 3) -> Blocks:
    """Three small blocks; the last `num_retrained` follow the seed, the others are the same for all seeds."""
    blocks = []
    for index, name in enumerate(("stem", "layer1.0", "head")):
        is_retrained = index >= 3 - num_retrained
        generator = torch.Generator().manual_seed(1000 * index + (seed if is_retrained else 0))
        blocks.append((name, {f"{name}.weight": torch.randn(4, 5, generator=generator)}))
    return blocks


def put(store: Store, seed: int = 0, num_retrained: int = 3, **fields) -> SnapshotWrite:
    return store.put_snapshot(architecture="resnet18", blocks=make_blocks(seed, num_retrained), num_classes=4, **fields)


def read(store: Store, name_or_id: str) -> Blocks:
    return [(block.name, store.read_block(block.digest)) for block in store.manifest(name_or_id).blocks]


def equal(one: Blocks, other: Blocks) -> bool:
    return [name for name, _ in one] == [name for name, _ in other] and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        for (_, a), (_, b) in zip(one, other, strict=True)
    )


def object_path(store: Store, digest: str) -> Path:
    return store.path / "objects" / digest[:2] / digest


def content(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file in the folder, by its path there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
