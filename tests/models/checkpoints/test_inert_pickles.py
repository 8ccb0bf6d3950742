"""Tensors of files with foreign classes in them: given up as they are, while nothing of the rest is run or imported."""

import argparse
import collections
import pickle
import sys
from pathlib import Path, PurePosixPath
from types import ModuleType

import pytest
import torch
from torch import nn

from raysnap.errors import WeightsError
from raysnap.models.blocks import random_tensors
from raysnap.models.checkpoints.inert_pickles import (
    InertFile,
    Made,
    TensorOutline,
    _outline,
    follow,
    items_of,
    tensors_of,
)
from raysnap.models.weight_files import read_weights

ARCHITECTURE = "mobilenet_v3_small"


class Small(nn.Module):
    """A module with a parameter, two buffers of which one is not saved, and a module in it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("left_out", torch.zeros(1), persistent=False)
        self.inner = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


@pytest.fixture
def state_dict() -> dict[str, torch.Tensor]:
    return {name: value for _, block in random_tensors(ARCHITECTURE, 3, 0) for name, value in block.items()}


@pytest.fixture
def foreign(monkeypatch):
    """Return a class of a module that is gone by the time the file is read; making one of it leaves a trace."""
    module = ModuleType("a_trainers_own")
    exec("class Options(dict):\n    def __setstate__(self, state):\n        raise SystemExit('it ran')\n", vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    made = module.Options(lr=0.1)
    made.note = "state"
    return made


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        a.dtype == other[name].dtype and torch.equal(a, other[name]) for name, a in one.items()
    )


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_come_out_beside_what_stays_inert(tmp_path, monkeypatch, foreign, legacy, protocol):
    base = torch.arange(12.0)
    tensors = {
        "whole": base,
        "part": base[3:9].reshape(2, 3).t(),
        "half": torch.tensor([1.5, -0.0], dtype=torch.float16),
        "brain": torch.arange(3).to(torch.bfloat16),
        "count": torch.tensor(2**40),
        "flags": torch.tensor([True, False]),
        "none": torch.zeros(3, 0),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    odd = {"options": foreign, "names": argparse.Namespace(a=1), "path": PurePosixPath("x"), "set": {1}, "bytes": b"x"}
    path = tmp_path / "odd.pth"
    content = {"model": collections.OrderedDict(tensors), "epoch": 3} | odd
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    monkeypatch.delitem(sys.modules, "a_trainers_own")
    before = set(sys.modules)
    file = InertFile(path)
    entries = tensors_of(file.value)
    assert set(entries) == {"model"}
    found = file.tensors(entries["model"])
    assert equal(found, {name: value.detach() for name, value in tensors.items()})
    assert set(sys.modules) == before
    assert isinstance(items_of(file.value)["options"], Made)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_module_gives_its_state_dict(tmp_path, legacy):
    module = Small().eval()
    path = tmp_path / "whole.pth"
    torch.save(module, path, _use_new_zipfile_serialization=not legacy)
    file = InertFile(path)
    assert equal(file.tensors(tensors_of(file.value)[""]), module.state_dict())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights, model, odd: {"state_dict": weights, "hyper_parameters": odd},
        lambda weights, model, odd: {"model": model, "args": odd},
        lambda weights, model, odd: {"ema": nn.DataParallel(model), "args": odd},
        lambda weights, model, odd: model,
    ],
    ids=["namespace", "module", "data parallel", "bare module"],
)
def test_files_of_trainers_are_imported(tmp_path, state_dict, wrap):
    from torchvision.models import get_model

    model = get_model(ARCHITECTURE, weights=None, num_classes=3)
    model.load_state_dict(state_dict)
    path = tmp_path / "last.ckpt"
    torch.save(wrap(state_dict, model, argparse.Namespace(lr=0.1)), path)
    weights = read_weights(path, ARCHITECTURE)
    assert equal({name: value for _, block in weights.blocks for name, value in block.items()}, state_dict)


class Gadget:
    """An object that makes a file when it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


def test_a_gadget_beside_weights_stays_a_name(tmp_path, state_dict):
    canary = tmp_path / "canary"
    path = tmp_path / "weights.pth"
    torch.save({"model": state_dict, "optimizer": Gadget(canary)}, path)
    assert equal(
        {name: value for _, block in read_weights(path, ARCHITECTURE).blocks for name, value in block.items()},
        state_dict,
    )
    assert not canary.exists()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b".",
        b"]e.",
        b"(.",
        b"N0.0",
        b"]]a",
        b"Na.",
        b"}Ns.",
        b"h\0.",
        b"t.",
        b"\x85.",
        b"R.",
        b"\x80\x05\x95\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"]" * 20 + b".",
        b"P1\n.",
        b"\x82\x01.",
    ],
)
def test_what_is_no_pickle_is_refused(tmp_path, raw):
    path = tmp_path / "raw.bin"
    path.write_bytes(raw)
    with path.open("rb") as file, pytest.raises(ValueError, match=r"\S"):
        follow(file)


@pytest.mark.parametrize(
    ("shape", "stride", "offset"),
    [((10**10,), (1,), 0), ((10**10,), (0,), 0), ((2, 2), (3, 3), 0), ((4,), (1,), 1), ((2,), (10**12,), 0)],
)
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, shape, stride, offset):
    path = tmp_path / "claims.pth"
    tensor = torch.zeros(4)
    torch.save({"x": tensor, "odd": argparse.Namespace()}, path)
    outline = items_of(InertFile(path).value)["x"]
    assert isinstance(outline, TensorOutline)
    with pytest.raises(ValueError, match="larger than its storage"):
        _outline((outline.storage, offset, shape, stride), has_dtype=False)


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    path = tmp_path / "cut.pth"
    state = {"x": torch.zeros(1000), "odd": argparse.Namespace()}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="a storage that is cut off"):
        InertFile(path)


def test_a_refusal_still_says_what_is_wrong(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"a": argparse.Namespace(), "b": 1}, path)
    with pytest.raises(WeightsError, match=r"tensors only .*'argparse\.Namespace', which is not part of a tensor"):
        read_weights(path, ARCHITECTURE)
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(WeightsError, match="tensors only"):
        read_weights(path, ARCHITECTURE)


class Key:
    def __init__(self, name: str):
        self.key = self.name = name

    def __hash__(self) -> int:
        return hash(self.key)


class Learner:
    def __init__(self, model: torch.nn.Module):
        self.model, self.dls = model, None


def test_keys_of_a_class_of_their_own_are_read_by_their_text(tmp_path):
    tensors = torch.nn.Linear(2, 3).state_dict()
    torch.save({Key("model"): tensors, Key("history"): []}, tmp_path / "x.pt")
    file = InertFile(tmp_path / "x.pt")
    entries = tensors_of(file.value)
    assert list(entries) == ["model"] and equal(file.tensors(entries["model"]), tensors)


def test_a_module_in_an_object_is_found(tmp_path):
    module = torch.nn.Linear(2, 3)
    torch.save(Learner(module), tmp_path / "x.pkl")
    file = InertFile(tmp_path / "x.pkl")
    entries = tensors_of(file.value)
    assert list(entries) == ["model"] and equal(file.tensors(entries["model"]), module.state_dict())
