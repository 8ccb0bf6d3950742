"""Both formats as the specification says them: a reader that imports nothing of raysnap gets out what went in."""

import ast
from pathlib import Path

import pytest
import torch

from raysnap.models.blocks import random_tensors
from raysnap.models.tensor_bytes import DTYPES
from raysnap.store.manifest import DatasetRecord
from raysnap.store.preprocessing import Preprocessing
from raysnap.store.store import Store
from raysnap.testing.blocks import put
from tests.support import format_reader
from tests.support.store_blocks import object_path

ARCHITECTURE = "mobilenet_v3_small"
ODD = {
    "half": torch.tensor([1.5, -0.0, float("inf")], dtype=torch.float16),
    "wide": torch.tensor([[1e300], [-1.0]], dtype=torch.float64),
    "brain": torch.arange(5).to(torch.bfloat16),
    "count": torch.tensor(2**62),
    "none": torch.zeros(3, 0),
    'odd "name" ü \\ 火': torch.ones(2, 1, 2),
    "byte": torch.arange(7, dtype=torch.uint8),
}


def as_stored(blocks) -> dict[str, tuple[str, list[int], bytes]]:
    """Return what the reader must find, worked out from the tensors that went in."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    return {
        name: (
            names[value.dtype],
            list(value.shape),
            value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
        for _, tensors in blocks
        for name, value in tensors.items()
    }


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.open(tmp_path / "store", create=True)


def test_the_reader_imports_no_raysnap():
    tree = ast.parse(Path(format_reader.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"json", "pathlib", "blake3", "safetensors"}


def test_a_model_comes_out_as_it_went_in(store):
    blocks = random_tensors(ARCHITECTURE, 3, seed=0)
    base = store.put_snapshot(architecture=ARCHITECTURE, blocks=blocks, num_classes=3, name="base").manifest
    tuned = [*blocks[:-1], (blocks[-1][0], {name: value + 1 for name, value in blocks[-1][1].items()})]
    written = store.put_snapshot(
        architecture=ARCHITECTURE,
        blocks=tuned,
        num_classes=3,
        base="base",
        retrain_index=0,
        dataset=DatasetRecord(name="vögel", classes=('a "b"', "c\\d", "\u2028", "e\n")),
        metrics={"val_accuracy": 0.1, "val_loss": 1e-7, "large": 1e22, "whole": 3.0},
        train={"lr": 1e-3, "note": "ü\x01\x7f", "steps": [1, 2**60, None, True]},
        name="tuned",
    ).manifest
    assert format_reader.list_snapshots(store.path) == {base.id: ["base"], written.id: ["tuned"]}
    manifest, tensors = format_reader.read_snapshot(store.path, "tuned")
    assert tensors == as_stored(tuned)
    assert manifest["id"] == written.id and manifest["base"] == base.id
    del manifest["checksum"]
    assert manifest == written.model_dump(mode="json")
    assert format_reader.read_snapshot(store.path, base.id)[1] == as_stored(blocks)
    names = [block["name"] for block in manifest["blocks"]]
    assert (names[0], names[-1]) == (blocks[0][0], blocks[-1][0]) == ("stem", "head")


def test_every_dtype_shape_and_name_comes_out_as_it_went_in(store):
    store.put_snapshot(architecture="resnet18", blocks=[("stem", ODD)], num_classes=3, name="odd")
    assert format_reader.read_snapshot(store.path, "odd")[1] == as_stored([("stem", ODD)])


@pytest.mark.parametrize(
    ("architecture", "preprocessing"),
    [
        ("resnet18", Preprocessing(resize_mode="squash", crop_rounding="down", interpolation="lanczos")),
        ('timm/vit_tiny_patch16_224{"img_size":64,"note":"ü \\"x\\""}', Preprocessing()),
        ('hf/vit{"hidden_size":32}', Preprocessing(interpolation="nearest")),
    ],
)
def test_what_format_2_adds_comes_out_as_it_went_in(store, architecture, preprocessing):
    put(store, name="of-format-1")
    written = store.put_snapshot(
        architecture=architecture,
        blocks=[("stem", ODD)],
        num_classes=3,
        preprocessing=preprocessing,
        name="mine",
    ).manifest
    manifest, tensors = format_reader.read_snapshot(store.path, "mine")
    assert tensors == as_stored([("stem", ODD)])
    assert manifest["format"] == 2
    del manifest["checksum"]
    assert manifest == written.model_dump(mode="json")
    assert manifest["architecture"] == architecture
    assert manifest["preprocessing"] == {name: plain(value) for name, value in preprocessing}
    assert store.manifest("mine") == written
    assert format_reader.read_snapshot(store.path, "of-format-1")[0]["format"] == 1


def plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("damage", ["block", "manifest", "ref"])
def test_the_checks_that_the_format_promises_find_a_flipped_bit(store, damage):
    manifest = put(store, name="mine").manifest
    path = {
        "block": object_path(store, manifest.blocks[1].digest),
        "manifest": store.path / "snapshots" / f"{manifest.id}.json",
        "ref": store.path / "refs" / "mine",
    }[damage]
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises((AssertionError, FileNotFoundError)):
        format_reader.read_snapshot(store.path, "mine")
