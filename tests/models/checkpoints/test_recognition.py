"""Architectures are found by names and shapes alone, or where a file names one that fits."""

import pytest
import torch

from raysnap.errors import WeightsError
from raysnap.models.blocks import random_tensors, shapes_of
from raysnap.models.checkpoints import recognition
from raysnap.models.checkpoints.recognition import choose, named_in, recognise
from raysnap.models.weight_files import read_weights

KNOWN = ("resnet18", "resnet34", "mobilenet_v3_small", "vit_b_32")


@pytest.fixture(autouse=True)
def few_architectures(monkeypatch) -> None:
    """Know few architectures: measuring all takes long."""
    recognition._candidates.cache_clear()
    monkeypatch.setattr(recognition, "architecture_tensors", lambda: {name: bodies(name) for name in KNOWN})
    yield
    recognition._candidates.cache_clear()


def bodies(name: str) -> dict[str, list[int]]:
    shapes = shapes_of(name)
    head = list(shapes)[-2:]
    return {key: list(shape) for key, shape in shapes.items() if key not in head}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("prefix", ["", "module._orig_mod."])
def test_an_architecture_is_found_by_its_tensors(name, prefix):
    entries = {"optimizer": {"step": ()}, "model": {f"{prefix}{key}": shape for key, shape in shapes_of(name).items()}}
    assert recognise(entries) == name


def test_the_head_and_batch_counts_do_not_matter():
    shapes = {
        name: shape
        for name, shape in shapes_of("resnet18").items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }
    assert recognise({"": shapes}) == "resnet18"
    assert recognise({"": shapes | {"fc.weight": (5, 512), "fc.bias": (5,)}}) == "resnet18"


def test_several_that_fit_are_listed(monkeypatch):
    twins = {name: bodies("resnet18") for name in ("resnet18", "twin")}
    monkeypatch.setattr(recognition, "architecture_tensors", lambda: twins)
    with pytest.raises(WeightsError, match="fit 2: --arch resnet18 or --arch twin"):
        recognise({"": shapes_of("resnet18")})


def test_tensors_of_nothing_known_ask_for_a_name():
    with pytest.raises(WeightsError, match="--arch"):
        recognise({"": {"weight": (3,)}})


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ({}, []),
        ({"arch": "resnet18"}, ["resnet18", "timm/resnet18"]),
        ({"architecture": "vit_tiny_patch16_224.augreg"}, ["timm/vit_tiny_patch16_224"]),
        (
            {"architecture": "vit_tiny_patch16_224", "model_args": {"img_size": 64}},
            ['timm/vit_tiny_patch16_224{"img_size":64}'],
        ),
        ({"architecture": "resnet18", "pretrained_cfg": {}}, ["timm/resnet18", "resnet18"]),
        ({"arch": 3}, []),
        ({"arch": "../x"}, []),
    ],
)
def test_a_name_in_a_file_is_a_candidate(description, expected):
    assert named_in(description) == expected


def test_a_name_that_does_not_fit_is_passed_by():
    shapes = {"": shapes_of("resnet34")}
    assert choose(["mobilenet_v3_small", "no such", "timm/nothing"], shapes) == "resnet34"
    assert choose(["resnet34"], {"": {f"x.{name}": shape for name, shape in shapes[""].items()}}) == "resnet34"


def test_a_file_needs_no_architecture(tmp_path):
    tensors = {name: value for _, block in random_tensors("resnet18", 3, 0) for name, value in block.items()}
    torch.save({"state_dict": tensors, "arch": "mobilenet_v3_small"}, tmp_path / "checkpoint.pth.tar")
    weights = read_weights(tmp_path / "checkpoint.pth.tar")
    assert weights.architecture == "resnet18" and len(weights.blocks) == 10
