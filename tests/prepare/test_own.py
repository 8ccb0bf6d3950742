"""One's own data made into datasets: tables, nested folders, parquet files, tar shards."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from raysnap.datasets.dataset import open_dataset, read_folder
from raysnap.errors import DataError
from raysnap.prepare.own import prepare_own
from tests.support.found_folders import CLASSES, FOUND, Maker, picture_bytes


def names_of(root: Path) -> list[str]:
    """Return the images of a prepared dataset, sorted."""
    return sorted(path.relative_to(root).as_posix() for path in read_folder(root).image_paths)


@pytest.mark.parametrize(
    ("name", "counts"),
    [("hf_parquet", {"train": 12, "val": 0, "test": 6}), ("webdataset", {"train": 12, "val": 6, "test": 0})],
)
def test_packed_data_becomes_a_dataset(tmp_path, name, counts):
    FOUND[name](tmp_path / "source")
    result = prepare_own("pets", tmp_path / "source", tmp_path / "data")
    assert (result.counts, result.num_classes, result.num_bad) == (counts, 3, 0)
    assert len({path.read_bytes() for path in open_dataset("pets", tmp_path / "data").image_paths}) == 18
    again = prepare_own("pets", tmp_path / "source", tmp_path / "data")
    assert again.dataset == result.dataset


def test_the_labels_of_parquet_rows_are_kept(tmp_path):
    FOUND["hf_parquet"](tmp_path / "source")
    dataset = prepare_own("pets", tmp_path / "source", tmp_path / "data").dataset
    assert dataset.classes == CLASSES
    first = next(item for item in dataset.splits["train"] if item.path.stem.endswith("_0000004"))
    assert dataset.classes[first.label] == "dog" and first.path.read_bytes() == picture_bytes(5, "PNG")


@pytest.mark.parametrize(
    ("level", "classes"),
    [("inner", ("bus", "car", "cat", "dog", "fox", "van")), ("outer", ("animals", "vehicles"))],
)
def test_nested_folders_become_what_was_chosen(tmp_path, level, classes):
    FOUND["taxonomy"](tmp_path / "source")
    result = prepare_own("pets", tmp_path / "source", tmp_path / "data", level=level)
    assert result.dataset.classes == classes
    assert result.counts == {"train": 24, "val": 12, "test": 0}


def test_a_table_from_elsewhere_names_the_classes(tmp_path):
    make = Maker(tmp_path / "source")
    make.images("day one", 4)
    table = tmp_path / "sheet.csv"
    table.write_text("what,where,who\ncat,000,x\ncat,001,y\ndog,002,x\ndog,003,y\n")
    result = prepare_own("pets", tmp_path / "source", tmp_path / "data", labels=table, label_column="what")
    assert names_of(result.dataset.root) == [
        "train/cat/000.jpg",
        "train/cat/001.jpg",
        "train/dog/002.jpg",
        "train/dog/003.jpg",
    ]
    with pytest.raises(DataError, match="expected the dataset made .*delete that folder"):
        prepare_own("pets", tmp_path / "source", tmp_path / "data", labels=table, label_column="who")


def test_files_of_one_name_stay_apart(tmp_path):
    make = Maker(tmp_path / "source")
    for folder in ("cat/one", "cat/two", "dog/one", "dog/two"):
        make.images(folder, 1)
    result = prepare_own("pets", tmp_path / "source", tmp_path / "data", level="outer")
    assert len(names_of(result.dataset.root)) == 4


def test_what_a_source_leaves_out_is_recorded(tmp_path):
    FOUND["phone"](tmp_path / "source")
    result = prepare_own("photos", tmp_path / "source", tmp_path / "data")
    record = json.loads((tmp_path / "data" / "photos" / "dataset.json").read_text())
    num_files = sum(path.is_file() for path in (tmp_path / "source").rglob("*"))
    assert sum(result.counts.values()) + sum(one["num_files"] for one in record["left_out"]) == num_files
    assert any("HEIC" in line for line in result.account.lines())


def test_a_bad_image_of_a_source_is_named(tmp_path):
    make = Maker(tmp_path / "source")
    make.images("cat", 3)
    make.images("dog", 3)
    make.file("dog/003.jpg", "no image")
    result = prepare_own("pets", tmp_path / "source", tmp_path / "data")
    assert result.num_bad == 1 and "dog/003.jpg" in result.account.bad[0]


def test_names_that_are_no_text_are_kept(tmp_path):
    make = Maker(tmp_path / "source")
    make.images("cat", 2)
    make.images("dog", 2)
    odd = os.fsdecode(b"odd-\xff")
    make.image(f"cat/{odd}.jpg")
    make.file(f"cat/{odd}.mov")
    result = prepare_own("pets", tmp_path / "source", tmp_path / "data")
    assert result.counts["train"] == 5
    record = json.loads((tmp_path / "data" / "pets" / "dataset.json").read_text())
    assert [one["path"] for one in record["left_out"]] == [f"cat/{odd}.mov"]


def shard(path: Path, entries: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize(
    ("suffix", "label"),
    [("cls", b"1\n"), ("json", b'{"label": 1, "url": "x"}'), ("cls.txt", b"1"), ("json", b'{"class_name": "dog"}')],
)
def test_labels_of_shards_in_many_forms(tmp_path, suffix, label):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "classnames.txt").write_text("cat\ndog\n")
    entries = {f"a/{index:03d}.jpg": picture_bytes(index) for index in range(4)}
    zero = label.replace(b"1", b"0").replace(b"dog", b"cat")
    entries |= {f"a/{index:03d}.{suffix}": zero if index < 2 else label for index in range(4)}
    shard(tmp_path / "source" / "x-000.tar", entries)
    assert prepare_own("pets", tmp_path / "source", tmp_path / "data").dataset.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (lambda root: shard(root / "a.tar", {"1.jpg": b"x"}), r"expected a label \(.cls or .json\) with every image"),
        (lambda root: shard(root / "a.tar", {"1.jpg": b"x", "1.png": b"x", "1.cls": b"0"}), "one image per sample"),
        (
            lambda root: (root / "a.parquet").write_bytes(b"PAR1"),
            "expected a parquet file, found one that can't be read",
        ),
        (lambda root: (root / "a.zip").write_bytes(b"PK"), r"found 1\s+archive, such as a\.zip; unpack it"),
        (lambda root: None, "found no folders"),
    ],
)
def test_what_has_no_labels_is_refused(tmp_path, fill, message):
    (tmp_path / "source").mkdir()
    fill(tmp_path / "source")
    with pytest.raises(DataError, match=message):
        prepare_own("pets", tmp_path / "source", tmp_path / "data")
    assert not (tmp_path / "data" / "pets").exists()


@pytest.mark.parametrize("name", ["../pets", "a/b", "", ".pets", "a:b", "imagenete"])
def test_odd_names_of_datasets_are_refused(tmp_path, name):
    FOUND["roboflow"](tmp_path / "source")
    with pytest.raises(DataError, match="expected a name that can be|did you mean 'imagenette'"):
        prepare_own(name, tmp_path / "source", tmp_path / "data")
