"""`raysnap data` as it is typed: what is printed where, exit codes, and a download from a server on this machine."""

import gzip
import hashlib
import json
import shutil
import struct
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from raysnap.cli.app import main
from raysnap.datasets.dataset import read_folder
from raysnap.datasets.pixel_cache import PixelCache
from raysnap.datasets.published import SOURCES, SourceFile
from raysnap.datasets.resizing import Resizing
from tests.support.cli_commands import make_dataset, run_json, run_text


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """Return an empty current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def pets(empty_folder):
    """Return a dataset of two classes and two splits, all images different."""
    for index in range(24):
        folder = empty_folder / "data" / "pets" / ("train", "test")[index % 2] / ("cat", "dog")[index // 2 % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 255, (70, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return empty_folder / "data" / "pets"


@pytest.fixture
def fashion_mnist_server(tmp_path, monkeypatch):
    """Four tiny IDX files, served over http; `fashion-mnist` is published there for the length of the test."""
    monkeypatch.setenv("NO_PROXY", "*")
    served = tmp_path / "served"
    served.mkdir()
    for prefix, num_images in (("train", 40), ("t10k", 20)):
        images = np.random.default_rng(num_images).integers(0, 255, (num_images, 28, 28), dtype=np.uint8)
        labels = bytes(index % 10 for index in range(num_images))
        header = struct.pack(">4I", 0x803, num_images, 28, 28), struct.pack(">2I", 0x801, num_images)
        for kind, content in (("images-idx3", header[0] + images.tobytes()), ("labels-idx1", header[1] + labels)):
            (served / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=served)) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{httpd.server_port}"
        files = tuple(
            SourceFile(path.name, f"{url}/{path.name}", f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}")
            for path in sorted(served.iterdir())
        )
        monkeypatch.setitem(SOURCES, "fashion-mnist", replace(SOURCES["fashion-mnist"], files=files))
        yield asked
        httpd.shutdown()
        thread.join()


def run(capsys, *arguments):
    """Exit code, stdout and stderr of a command."""
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


PREPARE = ("data", "prepare", "fashion-mnist", "--download", "--allow-other-counts")


def test_a_download_is_prepared_and_not_fetched_twice(empty_folder, capsys, fashion_mnist_server):
    code, out, err = run(capsys, *PREPARE)
    assert code == 0
    assert "data/fashion-mnist: 10\u00a0classes, train/val/test 40/0/20" in out
    assert "The downloaded files are kept in data/.downloads/fashion-mnist." in out
    assert err.count("  kB\n") + err.count("  B\n") >= 4
    assert len(fashion_mnist_server) == 4
    code, out, err = run(capsys, *PREPARE, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["counts"] == {"train": 40, "val": 0, "test": 20}
    assert len(fashion_mnist_server) == 4
    assert sorted(path.name for path in (empty_folder / "data").iterdir()) == [".downloads", "fashion-mnist"]


def test_counts_unlike_the_published_ones_need_an_option(empty_folder, capsys, fashion_mnist_server):
    code, _, err = run(capsys, *PREPARE[:-1])
    assert code == 2 and "60000" in err.replace(",", "")
    assert not (empty_folder / "data" / "fashion-mnist").exists()


def test_a_failed_download_is_reported_in_one_line(empty_folder, capsys, fashion_mnist_server, monkeypatch):
    files = tuple(replace(file, url=f"{file.url}.gone") for file in SOURCES["fashion-mnist"].files)
    monkeypatch.setitem(SOURCES, "fashion-mnist", replace(SOURCES["fashion-mnist"], files=files))
    code, out, err = run(capsys, *PREPARE)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and "found HTTP 404" in err and "pass --source PATH" in err


MISTAKES = [
    (("fashion-mnist",), "expected --source PATH or --download, found none; --download fetches its 4 files"),
    (("stanford-cars",), "expected --source PATH, found none; get cars_train.tgz, cars_test.tgz"),
    (("stanford-dogs", "--download"), "expected files that are published over https, found none"),
    (("imagenette", "--download", "--source", "x"), "expected --source PATH or --download, found both"),
    (("imagenete", "--download"), "did you mean 'imagenette'?"),
    (("imagenette", "--source", "missing"), "--source missing"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(empty_folder, capsys, arguments, message):
    code, out, err = run(capsys, "data", "prepare", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert list(empty_folder.iterdir()) == []


def test_a_built_in_dataset_needs_no_download(empty_folder, capsys):
    code, out, _ = run(capsys, "data", "prepare", "shapes-shape-a", "--download")
    assert code == 0 and "400/100/100" in out and "downloaded" not in out


def test_ls_shows_local_datasets_and_sources_of_others(pets, capsys):
    code, out, err = run(capsys, "data", "ls")
    assert (code, err) == (0, "")
    (line,) = (one for one in out.splitlines() if one.startswith("pets"))
    assert line.split() == ["pets", "yes", "2", "12/0/12", "your", "own", "folder"]
    assert "https://data.caltech.edu/records/65de6-vp158" in out and "[ImageNet overlap]" in out
    datasets = {one["name"]: one for one in json.loads(run(capsys, "data", "ls", "--json")[1])["datasets"]}
    assert datasets["pets"]["counts"] == {"train": 12, "val": 0, "test": 12}
    assert datasets["cub-birds-200"]["num_files"] == 1 and datasets["stanford-cars"]["num_files"] == 0


def test_a_check_without_findings_prints_tables_and_ends_0(pets, capsys):
    code, out, err = run(capsys, "data", "check", "pets")
    assert (code, err) == (0, "")
    assert out.startswith("data/pets: 2\u00a0classes, train/val/test 12/0/12\n")
    assert "24 of 24: 24 PNG" in out and "duplicates   none" in out


def test_a_leak_ends_a_check_with_1_and_other_copies_do_not(pets, capsys):
    whole = (pets / "train" / "cat" / "0.png").read_bytes()
    (pets / "train" / "dog" / "copy.png").write_bytes(whole)
    code, out, err = run(capsys, "data", "check", "pets")
    assert code == 0 and "1 in more than one class" in out
    assert err == "raysnap: data/pets: in several classes, the same bytes in train/cat/0.png, train/dog/copy.png\n"
    (pets / "test" / "cat" / "leak.png").write_bytes(whole)
    code, out, err = run(capsys, "data", "check", "pets")
    assert code == 1 and "1 in more than one split: a leak" in out and "leak between splits" in err
    document = json.loads(run(capsys, "data", "check", "pets", "--json")[1])
    assert document["ok"] is False and len(document["leaks"]) == 1 and document["label_conflicts"] == []


def test_a_sheet_is_drawn_beside_the_check(pets, empty_folder, capsys):
    (pets / "train" / "cat" / "bad.png").write_bytes(b"x")
    code, out, _ = run(capsys, "data", "check", "pets", "--sheet", "sheet.png")
    assert code == 1 and "Contact sheet: sheet.png" in out
    with Image.open(empty_folder / "sheet.png") as sheet:
        assert sheet.format == "PNG"
    code, _, err = run(capsys, "data", "check", "pets", "--sheet", "sheet.jpg")
    assert code == 2 and "ends in .png" in err


def test_ls_counts_local_images_and_draws_nothing(here, capsys):
    datasets = {one["name"]: one for one in run_json(capsys, "data", "ls")["datasets"]}
    assert datasets["pets"]["counts"] == {"train": 12, "val": 12, "test": 0}
    assert datasets["shapes-shape-a"]["path"] is None
    out = run_text(capsys, "data", "ls")
    assert "12/12/0" in out and "drawn on first use" in out
    assert not (here / "data" / "shapes-shape-a").exists()


def test_check_names_bad_images_and_duplicates(here, capsys):
    assert run_json(capsys, "data", "check", "pets")["ok"] is True
    assert "2\u00a0classes, train/val/test 12/12/0" in run_text(capsys, "data", "check", "data/pets")
    root = make_dataset(here / "own")
    shutil.copy(root / "train" / "cat" / "0.png", root / "val" / "cat" / "copy.png")
    (root / "train" / "dog" / "bad.png").write_bytes(b"no image")
    (root / "train" / "dog" / "notes.txt").touch()
    assert run_json(capsys, "data", "check", "own", exit_code=1)["ok"] is False
    assert main(["data", "check", "own"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("own: 2\u00a0classes, train/val/test 13/13/0\n")
    assert "1\u00a0file: no image (.txt)" in out
    assert err.count("\n") == 2
    assert "raysnap: own/train/dog/bad.png: expected an image" in err
    assert "raysnap: own: leak between splits, the same bytes in train/cat/0.png, val/cat/copy.png" in err


def test_prepare_draws_a_built_in_dataset(here, capsys):
    document = run_json(capsys, "data", "prepare", "shapes-shape-a", "--data-dir", "drawn")
    assert document == {
        "dataset": "shapes-shape-a", "counts": {"train": 400, "val": 100, "test": 100}, "num_classes": 4, "num_bad": 0,
    }  # fmt: skip
    out = run_text(capsys, "data", "prepare", "shapes-shape-a", "--data-dir", "drawn")
    assert out == "drawn/shapes-shape-a: 4\u00a0classes, train/val/test 400/100/100\n"


def fill_caches(pets, monkeypatch, tmp_path):
    """Decode the pets, and plant what a search and a fine-tune, and another dataset's search, leave."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    dataset = read_folder(pets)
    PixelCache.open(dataset.splits["train"], dataset, Resizing(32)).load(range(12))
    for place in (
        pets / ".raysnap" / "features",
        pets / ".raysnap" / "prefixes",
        tmp_path / "user/raysnap/features/other",
    ):
        place.mkdir(parents=True)
        (place / ("0" * 32)).write_bytes(b"x" * 10_000)


def test_caches_are_shown_by_dataset_and_kind(pets, capsys, monkeypatch, tmp_path):
    fill_caches(pets, monkeypatch, tmp_path)
    shown = run_json(capsys, "data", "cache")
    kinds = [(cache["kind"], cache["dataset"]) for cache in shown["caches"]]
    assert kinds == [("pixels", "data/pets"), ("features", "data/pets"), ("prefixes", "data/pets"), ("features", None)]
    assert shown["total_bytes"] == sum(cache["num_bytes"] for cache in shown["caches"]) > 40_000
    assert shown["freed_bytes"] == 0
    assert len(run_json(capsys, "data", "cache", "pets")["caches"]) == 3
    assert "in 1\u00a0cache" in run_text(capsys, "data", "cache", "--kind", "pixels")


def test_clearing_caches_frees_them_and_leaves_all_else(pets, capsys, monkeypatch, tmp_path):
    fill_caches(pets, monkeypatch, tmp_path)
    images = sorted(pets.rglob("*.png"))
    (pets / ".raysnap" / "features" / "mine").write_text("not a cache's")
    cleared = run_json(capsys, "data", "cache", "pets", "--clear", "--kind", "features")
    assert cleared["freed_bytes"] >= 10_000
    assert [cache["kind"] for cache in run_json(capsys, "data", "cache", "pets")["caches"]] == [
        "pixels",
        "features",
        "prefixes",
    ]
    run_json(capsys, "data", "cache", "--clear")
    assert [path.name for path in (pets / ".raysnap").rglob("*") if path.is_file() and path.name != ".lock"] == ["mine"]
    assert not list((tmp_path / "user").rglob("0" * 32))
    assert sorted(pets.rglob("*.png")) == images
    dataset = read_folder(pets)
    assert PixelCache.open(dataset.splits["train"], dataset, Resizing(32)).load(range(12)) == list(range(12))
