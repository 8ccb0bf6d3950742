"""Folders of torch.distributed.checkpoint: every tensor comes out whole, and a hostile index runs nothing."""

import io
import pickle
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from raysnap.errors import WeightsError
from raysnap.models.blocks import random_tensors
from raysnap.models.checkpoints.distributed import DistributedFolder
from raysnap.models.weight_files import read_weights

ARCHITECTURE = "mobilenet_v3_small"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture
def state_dict() -> dict[str, torch.Tensor]:
    return {name: value for _, block in random_tensors(ARCHITECTURE, 3, 0) for name, value in block.items()}


def write_chunks(folder: Path, parts: list[tuple[tuple[int, int], torch.Tensor]], **changes) -> None:
    """Write a folder of one tensor `x` of shape 4 x 3 in these parts, each with where it begins, as processes do."""
    folder.mkdir()
    places, chunks, raw = {}, [], b""
    for start, part in parts:
        buffer = io.BytesIO()
        torch.save(part.clone(), buffer)
        place = {"relative_path": "__0_0.distcp", "offset": len(raw), "length": len(buffer.getvalue())} | changes
        places[MetadataIndex("x", torch.Size(start))] = _StorageInfo(**place)
        chunks.append(ChunkStorageMetadata(torch.Size(start), part.shape))
        raw += buffer.getvalue()
    (folder / "__0_0.distcp").write_bytes(raw)
    described = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size((4, 3)), chunks)
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata({"x": described}, storage_data=places)))


WHOLE = torch.arange(12.0).reshape(4, 3)
ALL = [((0, 0), WHOLE)]
PARTS = [((0, 0), WHOLE[:1]), ((1, 0), WHOLE[1:, :2]), ((1, 2), WHOLE[1:, 2:])]


@pytest.mark.parametrize("wrap", [lambda tensors: tensors, lambda tensors: {"model": tensors, "epoch": 3}])
def test_what_torch_wrote_is_imported(tmp_path, state_dict, wrap):
    checkpoint.save(wrap(state_dict), checkpoint_id=tmp_path / "saved", no_dist=True)
    blocks = read_weights(tmp_path / "saved", ARCHITECTURE).blocks
    found = {name: value for _, block in blocks for name, value in block.items()}
    assert found.keys() == state_dict.keys()
    assert all(torch.equal(found[name], value) for name, value in state_dict.items())


def test_chunks_are_put_together(tmp_path):
    write_chunks(tmp_path / "saved", PARTS)
    folder = DistributedFolder(tmp_path / "saved")
    assert torch.equal(folder.tensors(folder.entries[""])["x"], WHOLE)


@pytest.mark.parametrize(
    ("parts", "changes"),
    [
        ([((0, 0), WHOLE[:3])], {}),
        ([*ALL, ((1, 0), WHOLE[1:])], {}),
        ([((0, 0), WHOLE[:2]), ((1, 0), WHOLE[:2])], {}),
        ([((2, 0), WHOLE)], {}),
        (ALL, {"offset": 10**9}),
        (ALL, {"offset": -1}),
        (ALL, {"length": 3}),
        (ALL, {"relative_path": "../saved/__0_0.distcp"}),
        (ALL, {"relative_path": "/etc/passwd"}),
        (ALL, {"relative_path": "missing"}),
        (ALL, {"transform_descriptors": ["zstd"]}),
        ([((0, 0), WHOLE.double())], {}),
    ],
)
def test_chunks_that_are_not_the_tensor_are_refused(tmp_path, parts, changes):
    write_chunks(tmp_path / "saved", parts, **changes)
    with pytest.raises((ValueError, OSError)) as caught:
        read_all(tmp_path / "saved")
    assert str(caught.value)


def read_all(path: Path) -> dict[str, torch.Tensor]:
    folder = DistributedFolder(path)
    return folder.tensors(folder.entries[""])


class Gadget:
    """An object that makes a file when it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("place", ["index", "value", "chunk"])
def test_a_gadget_in_the_folder_does_not_run(tmp_path, place):
    canary, folder = tmp_path / "canary", tmp_path / "saved"
    write_chunks(folder, PARTS)
    gadget = Gadget(canary)
    if place == "chunk":
        buffer = io.BytesIO()
        torch.save(gadget, buffer)
        (folder / "__0_0.distcp").write_bytes(buffer.getvalue() * 20)
    else:
        metadata = Metadata({"x": gadget}, storage_data={})
        (folder / ".metadata").write_bytes(pickle.dumps(gadget if place == "index" else metadata))
    with pytest.raises(WeightsError) as caught:
        read_weights(folder, ARCHITECTURE)
    assert "\n" not in str(caught.value)
    assert not canary.exists()
