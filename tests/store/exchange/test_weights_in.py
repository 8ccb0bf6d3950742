"""Weights in and out: torchvision's files come in, torchvision's files go out, and nothing is ever unpickled."""

import os
import pickle

import pytest
import safetensors.torch
import torch
import torchvision

from raysnap.errors import BlockDamaged, SnapshotNotFound, StoreError, WeightsError
from raysnap.models.weight_files import read_weights
from raysnap.store.exchange.model_card import CARD_MARK
from raysnap.store.exchange.weights_in import import_snapshot
from raysnap.store.exchange.weights_out import export_snapshot
from raysnap.store.manifest import DatasetRecord
from raysnap.store.store import Store
from raysnap.testing.blocks import put
from tests.support.store_blocks import object_path

ARCHITECTURE = "mobilenet_v3_small"


@pytest.fixture(scope="module")
def state_dict() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return torchvision.models.get_model(ARCHITECTURE, weights=None, num_classes=3).state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def values_of(path, entry: str | None = None) -> dict[str, torch.Tensor]:
    """Return the tensors that are taken from a file."""
    blocks = read_weights(path, ARCHITECTURE, entry).blocks
    return {name: value for _, block in blocks for name, value in block.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights, "epoch": 3},
        lambda weights: {"model": weights},
        lambda weights: {f"module.{name}": value for name, value in weights.items()},
        lambda weights: {"model_state_dict": {f"_orig_mod.module.{name}": value for name, value in weights.items()}},
        lambda weights: {name: torch.nn.Parameter(value, requires_grad=False) for name, value in weights.items()},
    ],
    ids=["plain", "state_dict", "model", "data parallel", "compiled", "parameters"],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_torch_checkpoint_gives_its_state_dict(state_dict, tmp_path, wrap, legacy):
    path = tmp_path / "weights.pth"
    torch.save(wrap(state_dict), path, _use_new_zipfile_serialization=not legacy)
    assert same(values_of(path), state_dict)


def test_a_safetensors_file_gives_its_state_dict(state_dict, tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({f"module.{name}": value for name, value in state_dict.items()}, path, {"format": "pt"})
    assert same(values_of(path), state_dict)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_exported_weights_are_those_added_and_load_strictly(store, state_dict, tmp_path, suffix):
    path = tmp_path / "in.pth"
    torch.save(state_dict, path)
    written = import_snapshot(store, path, ARCHITECTURE, name="mine")
    assert written.manifest.num_classes == 3
    out = tmp_path / "out" / f"weights{suffix}"
    export = export_snapshot(store, "mine", out)
    back = safetensors.torch.load_file(out) if suffix == ".safetensors" else torch.load(out, weights_only=True)
    assert same(back, state_dict)
    torchvision.models.get_model(ARCHITECTURE, num_classes=3).load_state_dict(back, strict=True)
    assert export.num_bytes == out.stat().st_size
    assert sorted(path.name for path in out.parent.iterdir()) == ["README.md", out.name]
    assert import_snapshot(store, out, ARCHITECTURE, name="mine").is_new is False


def test_a_pth_export_keeps_torchvisions_order(store, state_dict, tmp_path):
    path = tmp_path / "in.safetensors"
    safetensors.torch.save_file(state_dict, path)
    import_snapshot(store, path, ARCHITECTURE, name="mine")
    export_snapshot(store, "mine", tmp_path / "out.pth")
    assert list(torch.load(tmp_path / "out.pth", weights_only=True)) == list(state_dict)


def test_batch_counts_that_old_files_lack_are_zero(store, state_dict, tmp_path):
    path = tmp_path / "old.pth"
    torch.save({name: value for name, value in state_dict.items() if "num_batches_tracked" not in name}, path)
    import_snapshot(store, path, ARCHITECTURE, name="old")
    export_snapshot(store, "old", tmp_path / "new.pth")
    assert same(torch.load(tmp_path / "new.pth", weights_only=True), state_dict)


def test_a_taken_name_is_rejected_before_any_write(store, state_dict, tmp_path):
    path = tmp_path / "in.pth"
    torch.save(state_dict, path)
    snapshot = import_snapshot(store, path, ARCHITECTURE, name="mine").manifest.id
    torch.save({name: value + 1 for name, value in state_dict.items()}, path)
    with pytest.raises(StoreError, match="choose another name"):
        import_snapshot(store, path, ARCHITECTURE, name="mine")
    assert store.resolve("mine") == snapshot
    assert len(store.manifests()) == 1


def test_a_name_given_while_weights_come_in_stays(store, state_dict, tmp_path, monkeypatch):
    other, put_snapshot = put(store).manifest.id, Store.put_snapshot
    torch.save(state_dict, tmp_path / "in.pth")

    def put_late(self, **fields):
        written = put_snapshot(self, **fields)
        store.set_ref("mine", other)
        return written

    monkeypatch.setattr(Store, "put_snapshot", put_late)
    with pytest.raises(StoreError, match="nothing is changed"):
        import_snapshot(store, tmp_path / "in.pth", ARCHITECTURE, name="mine")
    assert store.resolve("mine") == other


def test_a_base_of_another_architecture_is_refused(store, state_dict, tmp_path):
    put(store, name="other")
    torch.save(state_dict, tmp_path / "in.pth")
    with pytest.raises(WeightsError, match="expected the architecture mobilenet_v3_small, found resnet18"):
        import_snapshot(store, tmp_path / "in.pth", ARCHITECTURE, base="other")
    assert len(store.manifests()) == 1


def test_a_tensor_larger_than_its_file_is_refused_by_its_name(store, state_dict, tmp_path):
    one = torch.zeros(())
    claims = {name: one.expand(value.shape) if value.dim() else value for name, value in state_dict.items()}
    torch.save(claims, tmp_path / "claims.pth")
    with pytest.raises(WeightsError, match="expected a dense tensor with its values in the file"):
        import_snapshot(store, tmp_path / "claims.pth", ARCHITECTURE)


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: {},
        lambda weights: [1, 2],
        lambda weights: "text",
        lambda weights: {"a": 1},
        lambda weights: {3: torch.zeros(1)},
        lambda weights: {name: value for name, value in weights.items() if name != "features.0.0.weight"},
        lambda weights: weights | {"extra.weight": torch.zeros(1)},
        lambda weights: weights | {"features.0.0.weight": torch.zeros(1)},
        lambda weights: weights | {"features.0.0.weight": weights["features.0.0.weight"] * float("nan")},
        lambda weights: weights | {"features.0.0.weight": torch.zeros(1).expand(10**12)},
        lambda weights: weights | {"classifier.3.bias": torch.tensor(1.0)},
        lambda weights: weights | {"classifier.3.bias": weights["classifier.3.bias"].to(torch.complex64)},
        lambda weights: weights | {"classifier.3.bias": weights["classifier.3.bias"].to(torch.int8)},
        lambda weights: weights | {"features.0.0.weight": torch.zeros(16, 3, 3, 3).view(torch.float4_e2m1fn_x2)},
        lambda weights: weights | {"../../features.0.0.weight": torch.zeros(1)},
    ],
)
def test_unfit_weights_are_rejected_before_any_write(store, state_dict, tmp_path, change):
    path = tmp_path / "weights.pth"
    torch.save(change(dict(state_dict)), path)
    with pytest.raises(WeightsError) as caught:
        import_snapshot(store, path, ARCHITECTURE)
    assert "\n" not in str(caught.value)
    assert store.stats()["num_blocks"] == 0


class _Canary:
    """An object that runs a command when it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


@pytest.mark.parametrize("nesting", ["bare", "value", "state_dict", "legacy", "pickle file"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_a_checkpoint_that_would_run_code_does_not(store, state_dict, tmp_path, nesting, suffix):
    canary = tmp_path / "canary"
    bomb = _Canary(f"touch '{canary}'")
    path = tmp_path / f"weights{suffix}"
    payload = {"bare": bomb, "value": state_dict | {"x": bomb}, "state_dict": {"state_dict": bomb}}.get(nesting, [bomb])
    if nesting == "pickle file":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=nesting != "legacy")
    with pytest.raises(WeightsError, match="tensors only"):
        import_snapshot(store, path, ARCHITECTURE)
    assert not canary.exists()


@pytest.mark.parametrize(
    "raw", [b"", b"x", b"PK\3\4" + bytes(50), b"\x80\x02." + bytes(9), bytes(1000), os.urandom(500)]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_garbage_is_refused_in_one_line(tmp_path, raw, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(raw)
    with pytest.raises(WeightsError) as caught:
        read_weights(path, ARCHITECTURE)
    assert "\n" not in str(caught.value)


def test_a_text_is_no_checkpoint_and_no_number(tmp_path):
    (tmp_path / "notes.pth").write_text("hello")
    with pytest.raises(WeightsError, match="tensors only .* found: something else, or a damaged file$"):
        read_weights(tmp_path / "notes.pth", ARCHITECTURE)


@pytest.mark.parametrize("name", ["missing.pth", ".", "weights.h5", "weights"])
def test_a_file_that_is_no_file_of_weights_is_refused(tmp_path, name):
    (tmp_path / "weights.h5").write_bytes(b"x")
    (tmp_path / "weights").write_bytes(b"x")
    with pytest.raises(WeightsError):
        read_weights(tmp_path / name, ARCHITECTURE)


def test_the_card_tells_lineage_data_metrics_and_how_to_load(store, state_dict, tmp_path):
    path = tmp_path / "in.pth"
    torch.save(state_dict, path)
    base = import_snapshot(store, path, ARCHITECTURE, dataset=DatasetRecord(name="birds")).manifest
    torch.save(state_dict | {"classifier.3.bias": torch.ones(3)}, path)
    hostile = DatasetRecord(name="<script>|`x`\n# title", classes=("a|b", "`c`"))
    import_snapshot(store, path, ARCHITECTURE, "tuned", base.id, hostile, metrics={"val_accuracy": 0.8125})
    export = export_snapshot(store, "tuned", tmp_path / "out" / "weights.safetensors")
    card = export.card_path.read_text()
    for part in (base.id[:12], "`birds`", "0.8125", "load_file('weights.safetensors')", "num_classes=3", "`a/b`"):
        assert part in card
    assert "\n# title" not in card
    assert "`<script>/'x' # title`" in card


def test_a_readme_of_someone_else_is_left_alone(store, state_dict, tmp_path):
    path = tmp_path / "in.pth"
    torch.save(state_dict, path)
    import_snapshot(store, path, ARCHITECTURE, name="mine")
    (tmp_path / "README.md").write_text("mine")
    export = export_snapshot(store, "mine", tmp_path / "out.safetensors")
    assert (tmp_path / "README.md").read_text() == "mine"
    assert CARD_MARK in export.card_path.read_text()
    assert export_snapshot(store, "mine", tmp_path / "out.safetensors", overwrite=True) == export


def test_an_export_replaces_a_file_only_if_asked(store, state_dict, tmp_path):
    torch.save(state_dict, tmp_path / "in.pth")
    import_snapshot(store, tmp_path / "in.pth", ARCHITECTURE, name="mine")
    out = tmp_path / "out.pth"
    out.write_bytes(b"precious")
    with pytest.raises(WeightsError, match=r"out\.pth: expected no such file yet, found one; .*--overwrite"):
        export_snapshot(store, "mine", out)
    assert out.read_bytes() == b"precious" and not (tmp_path / "README.md").exists()
    export_snapshot(store, "mine", out, overwrite=True)
    assert same(torch.load(out, weights_only=True), state_dict)


def test_exports_to_one_folder_have_a_card_each(store, state_dict, tmp_path):
    torch.save(state_dict, tmp_path / "in.pth")
    import_snapshot(store, tmp_path / "in.pth", ARCHITECTURE, name="mine")
    names = ("a.pth", "b.pth", "b.safetensors")
    cards = [export_snapshot(store, "mine", tmp_path / "out" / name).card_path for name in names]
    assert [card.name for card in cards] == ["README.md", "b.pth.md", "b.safetensors.md"]
    assert [name in card.read_text() for card, name in zip(cards, names, strict=True)] == [True] * 3
    again = export_snapshot(store, "mine", tmp_path / "out" / "a.pth", overwrite=True)
    assert again.card_path == cards[0]
    (tmp_path / "out" / "c.pth.md").write_text("mine")
    with pytest.raises(WeightsError, match=r"c\.pth\.md: expected no such file"):
        export_snapshot(store, "mine", tmp_path / "out" / "c.pth")
    assert not (tmp_path / "out" / "c.pth").exists()


def test_an_export_that_fails_leaves_nothing_behind(store, state_dict, tmp_path):
    path = tmp_path / "in.pth"
    torch.save(state_dict, path)
    manifest = import_snapshot(store, path, ARCHITECTURE, name="mine").manifest
    out = tmp_path / "out"
    with pytest.raises(WeightsError, match="found"):
        export_snapshot(store, "mine", out / "weights.onnx")
    with pytest.raises(SnapshotNotFound):
        export_snapshot(store, "other", out / "weights.pth")
    with pytest.raises(WeightsError, match="Not a directory"):
        export_snapshot(store, "mine", path / "inside" / "weights.pth")
    object_path(store, manifest.blocks[2].digest).write_bytes(b"")
    with pytest.raises(BlockDamaged):
        export_snapshot(store, "mine", out / "weights.pth")
    assert not out.exists()


def test_averaged_weights_of_swa_utils_are_taken_as_they_are(state_dict, tmp_path):
    model = torchvision.models.get_model(ARCHITECTURE, weights=None, num_classes=3)
    model.load_state_dict(state_dict)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    torch.save(averaged.state_dict(), tmp_path / "averaged.pth")
    assert same(values_of(tmp_path / "averaged.pth"), state_dict)


@pytest.mark.parametrize("legacy", [False, True])
def test_raw_weights_are_taken_and_averaged_ones_offered(store, state_dict, tmp_path, caplog, legacy):
    averaged = {f"module.{name}": value + 1 for name, value in state_dict.items()} | {"n_averaged": torch.tensor(7)}
    checkpoint = {"model": state_dict, "optimizer": {"state": {}}, "epoch": 3, "model_ema": averaged}
    torch.save(checkpoint, tmp_path / "both.pth", _use_new_zipfile_serialization=not legacy)
    raw = import_snapshot(store, tmp_path / "both.pth", ARCHITECTURE, name="raw")
    assert "took 'model' from the file; 'model_ema/module' would fit, too" in caplog.text
    other = import_snapshot(store, tmp_path / "both.pth", ARCHITECTURE, name="ema", entry="model_ema")
    assert same(store.read_state_dict("raw"), state_dict)
    assert same(store.read_state_dict("ema"), {name: value + 1 for name, value in state_dict.items()})
    assert raw.manifest.id != other.manifest.id
    with pytest.raises(WeightsError, match="both.pth: expected one of its entries that fit"):
        import_snapshot(store, tmp_path / "both.pth", ARCHITECTURE, entry="optimizer")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("fault", ["names", "shapes", "kinds"])
def test_values_are_read_only_of_a_file_that_fits(state_dict, tmp_path, monkeypatch, suffix, fault):
    path = tmp_path / f"large{suffix}"
    changed = {
        "names": {f"other_{name}": value for name, value in state_dict.items()},
        "shapes": state_dict | {"features.0.0.weight": torch.zeros(3)},
        "kinds": state_dict | {"features.0.0.weight": state_dict["features.0.0.weight"].to(torch.int32)},
    }[fault]
    if suffix == ".pth":
        torch.save(changed, path)
    else:
        safetensors.torch.save_file(changed, path)
    devices = []
    load = torch.load
    monkeypatch.setattr(
        torch, "load", lambda *args, **options: devices.append(options["map_location"]) or load(*args, **options)
    )
    monkeypatch.setattr("numpy.fromfile", lambda *args, **options: pytest.fail("the whole file is read"))
    with pytest.raises(WeightsError):
        read_weights(path, ARCHITECTURE)
    assert devices == (["meta"] if suffix == ".pth" else [])
