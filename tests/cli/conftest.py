"""A folder with a store, a dataset and configuration files, in which commands run; none may start Ray."""

from pathlib import Path

import pytest
import torch

from raysnap.models.blocks import random_head, random_tensors
from raysnap.store.manifest import DatasetRecord
from raysnap.store.preprocessing import Preprocessing
from raysnap.store.store import Store
from tests.support.cli_commands import make_dataset

SMALL = Preprocessing(image_size=32, resize_size=37)

SWEEP = "kind: sweep\ndatasets: [pets]\nimage_size: 32\nspace: {train.lr: {grid: [1.0e-3, 1.0e-2]}}\n"

JOB = "kind: generate\ndatasets: [pets]\nimage_size: 32\nnum_snapshots: 2\n"


@pytest.fixture
def no_ray(monkeypatch):
    """Fail a test that starts Ray: mistakes are reported before."""

    def refuse(*arguments, **options):
        raise AssertionError("Ray would be started")

    monkeypatch.setattr("ray.init", refuse)


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """Return a read-only folder with a store of two snapshots that differ in the head, an empty one, and a dataset."""
    folder = tmp_path_factory.mktemp("cli")
    store = Store.open(folder / "store", create=True)
    blocks = random_tensors("resnet18", 3, 0)
    store.put_snapshot(architecture="resnet18", blocks=blocks, num_classes=3, preprocessing=SMALL, name="base")
    store.put_snapshot(
        architecture="resnet18",
        blocks=[*blocks[:-1], ("head", random_head("resnet18", 3, 1))],
        num_classes=3,
        preprocessing=SMALL,
        base="base",
        retrain_index=0,
        dataset=DatasetRecord(name="pets"),
        metrics={"val_accuracy": 0.75},
        name="tuned",
    )
    make_dataset(folder / "data" / "pets")
    Store.open(folder / "empty-store", create=True)
    weights = {name: tensor for _, block in blocks for name, tensor in block.items()}
    torch.save(weights, folder / "fits.pth")
    torch.save(weights | {"fc.bias": torch.full((3,), torch.nan)}, folder / "nan.pth")
    return folder


@pytest.fixture
def here(shared, tmp_path, monkeypatch, no_ray) -> Path:
    """Return a current folder of its own, with links to the shared store and data."""
    for name in ("store", "data"):
        (tmp_path / name).symlink_to(shared / name)
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    (tmp_path / "exponent.yaml").write_text(f"{SWEEP}train:\n  lr: 1e-3\n")
    (tmp_path / "exponent_in_space.yaml").write_text(SWEEP.replace("1.0e-3", "1e-3"))
    (tmp_path / "a-file").write_text("x")
    monkeypatch.chdir(tmp_path)
    return tmp_path
