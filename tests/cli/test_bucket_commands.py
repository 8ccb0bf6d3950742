"""Commands on a store in a bucket, against a server: as on a folder."""

import json
from pathlib import Path

import pytest

from raysnap.cli.app import main
from raysnap.store.backends import client
from raysnap.store.store import Store
from raysnap.testing.blocks import put
from tests.support import search_stores
from tests.support.cli_commands import make_dataset, run_json, run_text
from tests.support.s3_server import BUCKET, environment, s3_server


@pytest.fixture(scope="module")
def server():
    with s3_server() as address:
        yield address


@pytest.fixture
def far(server, monkeypatch, tmp_path, request) -> str:
    """Return the address of a store with two snapshots, `one` and `two`."""
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    address = f"s3://{BUCKET}/{request.node.name}"
    store = Store.open(address, create=True)
    put(store, 1, 1, name="one")
    put(store, 2, 1, name="two", metrics={"val_accuracy": 0.75})
    return address


def test_ls_filters_and_says_what_it_asked(far, capsys, caplog, monkeypatch):
    listed = run_json(capsys, "store", "ls", "--store", far, "--where", "accuracy > 0.5")
    assert [one["names"] for one in listed["snapshots"]] == [["two"]]
    monkeypatch.setattr(client, "_ASKED", {})
    assert main(["-v", "store", "ls", "--store", far]) == 0
    assert f"{far}: 2 GET, 0 HEAD, 2 LIST, 0 PUT and 0 DELETE requests" in caplog.text


def test_show_diff_stats_and_du(far, capsys):
    assert run_json(capsys, "store", "show", "one", "--store", far)["names"] == ["one"]
    blocks = run_json(capsys, "store", "diff", "one", "two", "--store", far)["blocks"]
    assert [block["equal"] for block in blocks] == [True, True, False]
    assert run_json(capsys, "store", "stats", "--store", far)["num_blocks"] == 4
    assert "two" in run_text(capsys, "store", "du", "--store", far)


def test_rm_gc_and_verify(far, capsys):
    assert run_json(capsys, "store", "rm", "one", "--store", far)["num_blocks_freed"] == 1
    assert run_json(capsys, "store", "gc", "--grace", "0", "--store", far)["num_blocks_deleted"] == 1
    assert run_json(capsys, "store", "verify", "--store", far)["ok"]


def test_copy_there_and_back(far, tmp_path, capsys):
    assert run_json(capsys, "store", "copy", far, str(tmp_path / "near"))["num_blocks"] == 4
    assert run_json(capsys, "store", "copy", str(tmp_path / "near"), f"{far}/again")["num_snapshots"] == 2
    assert "0\u00a0blocks (0\u00a0B) sent" in run_text(capsys, "store", "copy", far, f"{far}/again")
    assert Store.open(tmp_path / "near").verify()["ok"]


def test_a_search_ranks_what_is_in_a_bucket(far, tmp_path, capsys):
    address, architecture = f"{far}/models", "mobilenet_v3_small"
    store = Store.open(address, create=True)
    for seed in (0, 1):
        search_stores.put(store, f"m{seed}", search_stores.variant(architecture, seed, 1), architecture)
    data = str(make_dataset(tmp_path / "pets"))
    found = run_json(capsys, "search", "--store", address, "--data", data, "--image-size", "32")
    assert sorted(one["name"] for one in found["ranking"]) == ["m0", "m1"] and found["skipped"] == []
    assert found["asked"]["store"] == address


def test_doctor_tries_a_bucket_out(far, capsys):
    assert main(["doctor", "--store", far, "--json"]) in (0, 1)
    findings = {one["what"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["bucket creates once"]["found"] == "kept"
    assert findings[f"store {far}"]["found"] == "2\u00a0snapshots"
    assert main(["doctor", "--store", f"s3://{BUCKET}-missing/x", "--json"]) == 1
    assert "there is no such bucket" in capsys.readouterr().out


def test_a_bucket_that_is_not_there_says_so_in_one_line(far, capsys):
    assert main(["store", "ls", "--store", "s3://no-such-bucket/store"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "there is no such bucket" in line
    assert main(["store", "ls", "--store", f"{far}/nothing"]) == 2
    assert "expected a model store, found nothing there" in capsys.readouterr().err
    assert not Path("s3:").exists()
