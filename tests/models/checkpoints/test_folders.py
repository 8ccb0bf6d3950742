"""Folders of weights: one model's files are found, shards are joined, and what is not one model is refused."""

import json
import zipfile

import pytest
import safetensors.torch
import torch

from raysnap.errors import WeightsError
from raysnap.models.blocks import random_tensors
from raysnap.models.checkpoints.folders import find_files
from raysnap.models.weight_files import read_weights

ARCHITECTURE = "mobilenet_v3_small"


@pytest.fixture
def state_dict() -> dict[str, torch.Tensor]:
    return {name: value for _, block in random_tensors(ARCHITECTURE, 3, 0) for name, value in block.items()}


def values_of(path) -> dict[str, torch.Tensor]:
    return {name: value for _, block in read_weights(path, ARCHITECTURE).blocks for name, value in block.items()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def write_shards(folder, state_dict, suffix: str = ".safetensors", num_shards: int = 3):
    """Write shards and their index as transformers does; return the index's path."""
    folder.mkdir(exist_ok=True)
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    names = list(state_dict)
    listed = {}
    for number in range(num_shards):
        part = names[number::num_shards]
        file = f"{stem}-{number + 1:05d}-of-{num_shards:05d}{suffix}"
        tensors = {name: state_dict[name] for name in part}
        if suffix == ".safetensors":
            safetensors.torch.save_file(tensors, folder / file, {"format": "pt"})
        else:
            torch.save(tensors, folder / file)
        listed |= dict.fromkeys(part, file)
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": listed}))
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_are_joined_by_their_index(tmp_path, state_dict, suffix):
    index = write_shards(tmp_path / "model", state_dict, suffix)
    assert len(find_files(tmp_path / "model").files) == 3
    assert same(values_of(tmp_path / "model"), state_dict)
    assert same(values_of(index), state_dict)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "anything.pth"])
def test_a_folder_of_one_model_is_read(tmp_path, state_dict, name):
    (tmp_path / "config.json").write_text("{}")
    if name.endswith(".safetensors"):
        safetensors.torch.save_file(state_dict, tmp_path / name)
    else:
        torch.save(state_dict, tmp_path / name)
    assert same(values_of(tmp_path), state_dict)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda listed: {}, "weight_map"),
        (lambda listed: [], "weight_map"),
        (lambda listed: listed | {"more": 3}, "weight_map"),
        (lambda listed: listed | {"more": "../outside.safetensors"}, "beside it"),
        (lambda listed: listed | {"more": "/etc/passwd"}, "beside it"),
        (lambda listed: listed | {"more": "other.bin"}, "one kind"),
        (lambda listed: listed | {"more": "missing.safetensors"}, "missing"),
        (lambda listed: listed | {"more": next(iter(listed.values()))}, "'more'"),
        (lambda listed: dict(list(listed.items())[1:]), "features.0.0.weight"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path, state_dict, change, reason):
    index = write_shards(tmp_path / "model", state_dict)
    document = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": change(document["weight_map"])}))
    with pytest.raises(WeightsError, match=reason) as caught:
        read_weights(tmp_path / "model", ARCHITECTURE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"weight_map": NaN}', "[" * 100_000])
def test_an_index_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(WeightsError):
        find_files(tmp_path)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], "no file of weights"),
        (["readme.txt"], "no file of weights"),
        (["a.pth", "b.pth"], "2 files .a.pth, b.pth.; name the files"),
    ],
)
def test_a_folder_of_no_or_several_models_is_refused(tmp_path, names, reason):
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(WeightsError, match=reason):
        find_files(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path, state_dict):
    index = write_shards(tmp_path / "model", state_dict)
    files = find_files(tmp_path / "model").files
    first = next(iter(state_dict))
    tensors = safetensors.torch.load_file(files[1]) | {first: state_dict[first]}
    safetensors.torch.save_file(tensors, files[1])
    with pytest.raises(WeightsError, match=f"{first}' in two"):
        read_weights(index, ARCHITECTURE)


def test_a_missing_head_is_drawn_with_one_class(tmp_path, state_dict):
    body = {name: value.half() for name, value in state_dict.items() if not name.startswith("classifier.3")}
    counts = {name: state_dict[name] for name in body if name.endswith("num_batches_tracked")}
    torch.save({f"backbone.{name}": value for name, value in (body | counts).items()}, tmp_path / "body.pth")
    weights = read_weights(tmp_path / "body.pth", ARCHITECTURE)
    assert weights.headless and "no head" in weights.remark
    assert [tuple(value.shape) for value in weights.blocks[-1][1].values()] == [(1, 1024), (1,)]
    found = {name: value for _, block in weights.blocks[:-1] for name, value in block.items()}
    assert same(found, body | counts)


@pytest.mark.parametrize("num_classes", [3, 1])
def test_a_head_of_another_name_is_found(tmp_path, state_dict, num_classes):
    body = {f"backbone.{name}": value for name, value in state_dict.items() if not name.startswith("classifier.3")}
    head = {"head.fc.weight": torch.rand(num_classes, 1024), "head.fc.bias": torch.rand(num_classes)}
    torch.save({"state_dict": body | head}, tmp_path / "body.pth")
    weights = read_weights(tmp_path / "body.pth", ARCHITECTURE)
    assert not weights.headless and "took the layer 'head.fc' for its head" in weights.remark
    assert all(map(torch.equal, weights.blocks[-1][1].values(), head.values()))


@pytest.mark.parametrize(
    "more",
    [
        {"proj.weight": torch.rand(3, 512), "proj.bias": torch.rand(3)},
        {"proj.weight": torch.rand(3, 1024), "proj.bias": torch.rand(4)},
        {"one.weight": torch.rand(3, 1024), "two.bias": torch.rand(3)},
        {"a.weight": torch.rand(3, 1024), "a.bias": torch.rand(3), "b.weight": torch.rand(3, 1024)},
    ],
)
def test_other_tensors_are_no_head(tmp_path, state_dict, more):
    body = {name: value for name, value in state_dict.items() if not name.startswith("classifier.3")}
    torch.save(body | more, tmp_path / "body.pth")
    with pytest.raises(WeightsError, match="expected no other tensors beside them"):
        read_weights(tmp_path / "body.pth", ARCHITECTURE)


@pytest.mark.parametrize(
    ("name", "step"), [("a.onnx", "torch.save"), ("a.keras", "torch.save"), ("a.pt2", "torch.export.load")]
)
def test_files_of_other_forms_are_refused_with_a_step(tmp_path, name, step):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(WeightsError, match=step):
        find_files(tmp_path / name)


def test_a_program_of_torchscript_is_refused_with_a_step(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/constants.pkl", b"x" * 1000)
    with pytest.raises(WeightsError, match="torch.jit.load") as caught:
        read_weights(tmp_path / "model.pt", ARCHITECTURE)
    assert "\n" not in str(caught.value)
