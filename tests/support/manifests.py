"""Manifests to test with."""

from blake3 import blake3

from raysnap.store.manifest import BlockEntry, DatasetRecord, Manifest, snapshot_id

DIGESTS = [blake3(bytes([index])).hexdigest() for index in range(3)]
BLOCKS = tuple(BlockEntry(name, digest, 8) for name, digest in zip(("stem", "layer1.0", "head"), DIGESTS, strict=True))


def make_manifest(**changes) -> Manifest:
    fields = {
        "id": snapshot_id("resnet18", [(block.name, block.digest) for block in BLOCKS]),
        "architecture": "resnet18",
        "num_classes": 4,
        "blocks": BLOCKS,
        "retrain_index": 1,
        "dataset": DatasetRecord(name="vögel", classes=('a "quoted" one', "b")),
        "metrics": {"val_accuracy": 0.75, "val_loss": 1e-7},
        "train": {"lr": 0.1, "milestones": (1, 2), "checksum": "mine"},
        "created": "2026-01-02T03:04:05Z",
        "raysnap_version": "0.1.0",
    }
    return Manifest(**(fields | changes))
