"""Bytes that raysnap 0.1 wrote are read for ever: a store of format 1, and the folders of a finished run and a sweep.

`data/` holds them as they were written, and in `expected.json` what a reader that knows nothing of raysnap found in
them. Neither is ever made again: where a test here fails, the code is wrong.
"""

import json
import tarfile
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from PIL import Image
from safetensors import deserialize
from safetensors.torch import load_file
from torchvision.models import get_model

from raysnap.cli.app import main
from raysnap.datasets.text.tokenizer import PaddedTokenizer
from raysnap.report.page import write_report
from raysnap.runs.run import read_run
from raysnap.store.exchange.weights_out import export_snapshot
from raysnap.store.store import Store

DATA = Path(__file__).parent / "data"
EXPECTED = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))
SNAPSHOTS = EXPECTED["snapshots"]
TEXT = json.loads((DATA / "expected_2_text.json").read_text(encoding="utf-8"))
NAMES = sorted(name for snapshot in SNAPSHOTS.values() for name in snapshot["names"])


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """Return a folder with the store and the runs side by side, as their configurations say; tests only read there."""
    directory = tmp_path_factory.mktemp("old")
    for archive in ("format_1_store.tar.xz", "run_0_1.tar.xz"):
        with tarfile.open(DATA / archive) as tar:
            tar.extractall(directory, filter="data")
    return directory


@pytest.fixture
def store(unpacked) -> Store:
    return Store.open(unpacked / "store")


@pytest.fixture
def runs(unpacked, monkeypatch) -> Path:
    monkeypatch.chdir(unpacked)
    return unpacked


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def tensors_of(snapshot: str) -> dict[str, list]:
    """Return the expected (dtype, shape, digest) of each tensor of a snapshot."""
    blocks = SNAPSHOTS[snapshot]["manifest"]["blocks"]
    return {name: entry for block in blocks for name, entry in EXPECTED["blocks"][block["digest"]].items()}


def test_old_snapshots_are_listed_under_their_names(store):
    assert {one.id: sorted(one.names) for one in store.summaries()} == {
        snapshot: sorted(expected["names"]) for snapshot, expected in SNAPSHOTS.items()
    }
    assert sorted(store.refs()) == NAMES


@pytest.mark.parametrize("snapshot", SNAPSHOTS)
def test_old_manifest_is_read_value_for_value(store, snapshot):
    expected = SNAPSHOTS[snapshot]["manifest"]
    found = store.manifest(snapshot).model_dump(mode="json")
    assert found == {key: value for key, value in expected.items() if key != "checksum"}


@pytest.mark.parametrize("snapshot", SNAPSHOTS)
def test_old_manifest_is_written_byte_for_byte(store, snapshot):
    written = store.manifest(snapshot).to_bytes()
    assert written == (store.path / "snapshots" / f"{snapshot}.json").read_bytes()
    assert blake3(written).hexdigest() == SNAPSHOTS[snapshot]["manifest_blake3"]


def test_old_blocks_are_read_tensor_for_tensor(store):
    for digest, expected in EXPECTED["blocks"].items():
        found = store.read_block(digest)
        assert {name: blake3(bytes_of(tensor)).hexdigest() for name, tensor in found.items()} == {
            name: tensor_digest for name, (_, _, tensor_digest) in expected.items()
        }
        assert {name: list(tensor.shape) for name, tensor in found.items()} == {
            name: shape for name, (_, shape, _) in expected.items()
        }


def test_old_tensors_get_the_same_digest_today(store, tmp_path):
    new = Store.open(tmp_path / "new", create=True)
    for digest in EXPECTED["blocks"]:
        assert new.put_block(store.read_block(digest)).digest == digest


def test_old_store_is_sound_and_counted(store):
    found = store.verify()
    assert found["ok"], found
    assert (found["num_snapshots"], found["num_blocks"]) == (len(SNAPSHOTS), len(EXPECTED["blocks"]))
    stats = store.stats()
    assert {key: stats[key] for key in EXPECTED["stats"]} == EXPECTED["stats"]


def test_old_lineage_leads_to_the_base(store):
    for snapshot, expected in SNAPSHOTS.items():
        base = expected["manifest"]["base"]
        assert [one.id for one in store.lineage(store.manifest(snapshot))] == ([base] if base else [])


@pytest.mark.parametrize("name", ["retrained", "half", "mobilenet_v3_small-base"])
def test_old_snapshot_is_exported_for_torchvision(store, tmp_path, name):
    path = tmp_path / "exported.safetensors"
    export_snapshot(store, name, path)
    found = {key: blake3(bytes(tensor["data"])).hexdigest() for key, tensor in deserialize(path.read_bytes())}
    assert found == {key: digest for key, (_, _, digest) in tensors_of(store.resolve(name)).items()}
    model = get_model("mobilenet_v3_small", weights=None, num_classes=4)
    model.load_state_dict(load_file(path), strict=True)


def test_old_snapshots_are_ranked(store, tmp_path, capsys):
    for split, num_images in (("train", 8), ("test", 4)):
        for label, colour in enumerate(("red", "blue")):
            folder = tmp_path / "images" / split / colour
            folder.mkdir(parents=True)
            for number in range(num_images):
                shade = 200 - 10 * number
                pixel = (shade, 20, 30) if label == 0 else (30, 20, shade)
                Image.new("RGB", (40, 40), pixel).save(folder / f"{number}.png")
    command = ["search", "--data", str(tmp_path / "images"), "--store", str(store.path), "--image-size", "32"]
    main([*command, "--method", "shared", "--feature-cache", "0", "--json"])
    result = json.loads(capsys.readouterr().out)
    bicubic = {store.resolve("retrained")}  # raysnap 0.1 skips it, as its pixels are bilinear
    assert {entry["snapshot"] for entry in result["ranking"]} - bicubic == set(SNAPSHOTS) - bicubic
    assert {entry["snapshot"] for entry in result["skipped"]} <= bicubic
    assert all(0 <= entry["score"] <= 1 for entry in result["ranking"])


@pytest.mark.parametrize("folder", EXPECTED["runs"])
def test_old_run_is_read_row_for_row(runs, folder):
    run, expected = read_run(runs / folder), EXPECTED["runs"][folder]
    assert [[one.name, one.status, one.snapshot, one.val_accuracy] for one in run.trials] == expected["trials"]
    searches = [[one.cell, one.repeat, one.status, one.ranking[0].snapshot] for one in run.searches]
    assert searches == expected["searches"]
    assert run.num_unfinished == 0 and run.remarks == ()


@pytest.mark.parametrize("folder", EXPECTED["runs"])
def test_old_run_gets_its_report(runs, tmp_path, folder):
    page = write_report(runs / folder, tmp_path / "report.html").read_text(encoding="utf-8")
    for trial, *_ in EXPECTED["runs"][folder]["trials"]:
        assert trial in page


FORMAT_2 = json.loads((DATA / "expected_2.json").read_text(encoding="utf-8"))["snapshots"]


@pytest.fixture(scope="module")
def store_2(tmp_path_factory) -> Store:
    """Return a store whose manifests are of both formats; tests only read there."""
    directory = tmp_path_factory.mktemp("format-2")
    with tarfile.open(DATA / "format_2_store.tar.xz") as tar:
        tar.extractall(directory, filter="data")
    return Store.open(directory / "store")


@pytest.mark.parametrize("snapshot", FORMAT_2)
def test_format_2_is_read_and_written_byte_for_byte(store_2, snapshot):
    expected = FORMAT_2[snapshot]
    manifest = store_2.manifest(snapshot)
    assert manifest.model_dump(mode="json") | {"checksum": expected["manifest"]["checksum"]} == expected["manifest"]
    assert blake3(manifest.to_bytes()).hexdigest() == expected["manifest_blake3"]
    found = {name: value for block in manifest.blocks for name, value in store_2.read_block(block.digest).items()}
    assert {name: [list(value.shape), blake3(bytes_of(value)).hexdigest()] for name, value in found.items()} == {
        name: [shape, digest] for name, (_, shape, digest) in expected["tensors"].items()
    }


def test_a_store_of_format_2_is_sound_and_listed(store_2):
    assert (store_2.path / "store.json").read_bytes() == b'{"digest":"blake3","format":2}\n'
    assert store_2.verify()["ok"]
    listed = {one.id: sorted(one.names) for one in store_2.summaries()}
    assert listed == {snapshot: expected["names"] for snapshot, expected in FORMAT_2.items()}
    assert {manifest.format for manifest in store_2.manifests()} == {1, 2}


@pytest.fixture(scope="module")
def text_store(tmp_path_factory) -> Store:
    """Return a store of format 2 whose model sees texts; tests only read there."""
    directory = tmp_path_factory.mktemp("texts")
    with tarfile.open(DATA / "format_2_text_store.tar.xz") as tar:
        tar.extractall(directory, filter="data")
    return Store.open(directory / "store")


def test_a_model_of_texts_is_read_and_written_byte_for_byte(text_store):
    manifest = text_store.manifest("words")
    assert manifest.id == TEXT["snapshot"]
    assert manifest.model_dump(mode="json") | {"checksum": TEXT["manifest"]["checksum"]} == TEXT["manifest"]
    assert blake3(manifest.to_bytes()).hexdigest() == TEXT["manifest_blake3"]
    found = {name: value for block in manifest.blocks for name, value in text_store.read_block(block.digest).items()}
    assert {name: [list(value.shape), blake3(bytes_of(value)).hexdigest()] for name, value in found.items()} == {
        name: [shape, digest] for name, (_, shape, digest) in TEXT["tensors"].items()
    }


def test_the_tokenizer_of_an_old_store_still_makes_tokens(text_store):
    how = text_store.manifest("words").preprocessing
    content = text_store.read_tokenizer(how.tokenizer.digest)
    assert blake3(content).hexdigest() == TEXT["tokenizer_blake3"]
    tokens = PaddedTokenizer(content, how.max_length, how.padding)(["The soup was great!", "zoo"])
    assert tokens[:, :8].tolist() == [[2, 181, 171, 190, 126, 9, 3, 0], [2, 41, 66, 66, 3, 0, 0, 0]]
    assert text_store.verify()["ok"]
