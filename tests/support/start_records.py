"""Records of fine-tunes, made for tests without any fine-tune."""

from blake3 import blake3

from raysnap.store.records import Recipe, StartFacts, StartRecord, TargetFacts


def id_of(name: str) -> str:
    """Return the id of the snapshot of this name."""
    return blake3(name.encode()).hexdigest()


def record(start: str, dataset: str, accuracy: float, *, architecture="resnet18", lineage=(), **recipe) -> StartRecord:
    """Return what came of a fine-tune from the snapshot of this name."""
    return StartRecord(
        start=StartFacts(snapshot=id_of(start), architecture=architecture, lineage=tuple(map(id_of, lineage))),
        dataset=TargetFacts(
            name=dataset, digest=f"digest of {dataset}", num_classes=4, num_train=32, num_val=16, num_test=16
        ),
        recipe=Recipe(image_size=32, train={"epochs": 3, **recipe}, seed=0),
        num_epochs=3,
        metrics={"val_accuracy": accuracy},
    )
