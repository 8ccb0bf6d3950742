"""Rows of the table of trainers' checkpoints whose packages the tests need anyway; the rest is run by hand."""

import warnings

import pytest

from raysnap.models.blocks import block_skeleton, shapes_of
from raysnap.models.checkpoints import recognition
from tools import trainer_checkpoints
from tools.trainers import library_rows, torch_rows  # noqa: F401 - they fill the table
from tools.trainers.row import ROWS, TORCHVISION, Canary, Row, Saved, torchvision_model

OFTEN = (
    "legacy",
    "whole_module_legacy",
    "plain_pickle",
    "imagenet_example",
    "reference_script",
    "fully_sharded_distributed",
    "with_metadata",
    "hub_mixin",
    "ray_train",
    "timm_raw",
    "hf_base",
    "hf_timm",
)


@pytest.fixture(autouse=True)
def few_architectures(monkeypatch) -> None:
    """Know one architecture: measuring all takes long."""
    head = block_skeleton(TORCHVISION, -1).tensors()
    body = {name: list(shape) for name, shape in shapes_of(TORCHVISION).items() if name not in head}
    recognition._candidates.cache_clear()
    monkeypatch.setattr(recognition, "architecture_tensors", lambda: {TORCHVISION: body})
    yield
    recognition._candidates.cache_clear()


def run(one: Row) -> dict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trainer_checkpoints.run(one)


@pytest.mark.parametrize("name", OFTEN)
def test_what_a_trainer_saved_is_imported_or_refused(name):
    [one] = [each for each in ROWS if each.make.__name__ == name]
    found = run(one)
    assert found["outcome"] in ("equal", "refused"), found


def test_a_row_whose_tensors_differ_fails(tmp_path):
    import torch

    def make(folder) -> Saved:
        model = torchvision_model()
        torch.save(model.state_dict(), folder / "model.pth")
        return Saved(folder / "model.pth", {name: tensor + 1 for name, tensor in model.state_dict().items()})

    assert "tensors differ" in run(Row("torch", "other tensors", (), make))["detail"]


def test_a_row_of_which_something_ran_fails(monkeypatch):
    import torch

    def make(folder) -> Saved:
        torch.save(Canary(), folder / "model.pth")
        return Saved(folder / "model.pth", refusal="expected")

    assert run(Row("torch", "a canary", (), make))["outcome"] == "refused"
    monkeypatch.setattr(
        trainer_checkpoints, "imported", lambda saved, _: (torch.load(saved.path, weights_only=False), "")
    )
    assert run(Row("torch", "a canary", (), make))["detail"] == "something in the file was run"


def test_a_row_without_its_package_is_skipped():
    assert run(Row("nothing", "nothing", ("no_such_package",), lambda _: Saved(_)))["outcome"] == "skipped"
