"""Named datasets made from their makers' files, and folders that appear whole or not at all."""

import gzip
import json
import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raysnap.config import ShapesConfig
from raysnap.converters import FASHION_MNIST_CLASSES, prepare_dataset, read_idx
from raysnap.data import open_dataset
from raysnap.errors import DataError
from raysnap.imagefolder import class_slug, new_folder

NUM_TRAIN, NUM_TEST = 30, 10


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def fashion_mnist_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, num_images in (("train", NUM_TRAIN), ("t10k", NUM_TEST)):
        arrays[f"{prefix}-images-idx3-ubyte"] = rng.integers(0, 256, (num_images, 28, 28), dtype=np.uint8)
        arrays[f"{prefix}-labels-idx1-ubyte"] = (np.arange(num_images) % 10).astype(np.uint8)
    return arrays


def write_source(folder: Path, packed: bool = True, **changed: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in fashion_mnist_arrays().items():
        content = changed.get(name.replace("-", "_"), idx_bytes(array))
        (folder / f"{name}.gz").write_bytes(gzip.compress(content)) if packed else (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", ["", "raw", "FashionMNIST/raw"])
def test_fashion_mnist_becomes_an_image_folder_with_every_pixel_kept(tmp_path, packed, place):
    write_source(tmp_path / "source" / place, packed)
    result = prepare_dataset("fashion-mnist", tmp_path / "source", tmp_path / "data")
    assert (result.counts, result.num_classes, result.num_bad) == ({"train": 30, "val": 0, "test": 10}, 10, 0)
    assert result.dataset == open_dataset("fashion-mnist", tmp_path / "data")
    originals = json.loads((tmp_path / "data" / "fashion-mnist" / "classes.json").read_text())
    assert originals["T-shirt_top"] == "T-shirt/top"
    arrays = fashion_mnist_arrays()
    for split, prefix in (("train", "train"), ("test", "t10k")):
        assert len(result.dataset.splits[split]) == len(arrays[f"{prefix}-labels-idx1-ubyte"])
        for item in result.dataset.splits[split]:
            index = int(item.path.stem)
            with Image.open(item.path) as image:
                assert np.array_equal(np.asarray(image), arrays[f"{prefix}-images-idx3-ubyte"][index])
            label = arrays[f"{prefix}-labels-idx1-ubyte"][index]
            assert originals[item.path.parent.name] == FASHION_MNIST_CLASSES[label]


def test_one_of_the_files_stands_for_all_four(tmp_path):
    write_source(tmp_path / "source")
    result = prepare_dataset("fashion-mnist", tmp_path / "source" / "train-labels-idx1-ubyte.gz", tmp_path / "data")
    assert result.counts["train"] == NUM_TRAIN


def test_preparing_twice_changes_nothing(tmp_path):
    source = write_source(tmp_path / "source")
    first = prepare_dataset("fashion-mnist", source, tmp_path / "data")
    before = (tmp_path / "data" / "fashion-mnist").stat().st_ctime_ns
    assert prepare_dataset("fashion-mnist", source, tmp_path / "data") == first
    assert (tmp_path / "data" / "fashion-mnist").stat().st_ctime_ns == before
    record = json.loads((tmp_path / "data" / "fashion-mnist" / "dataset.json").read_text())
    assert record["counts"] == {"train": NUM_TRAIN, "test": NUM_TEST}
    assert len(record["files"]) == 4
    assert "MIT" in record["licence"]


def test_another_source_does_not_replace_what_is_there(tmp_path):
    prepare_dataset("fashion-mnist", write_source(tmp_path / "source"), tmp_path / "data")
    other = write_source(tmp_path / "other", train_labels_idx1_ubyte=idx_bytes(np.zeros(NUM_TRAIN, np.uint8)))
    with pytest.raises(DataError, match="found one with other files.*delete that folder"):
        prepare_dataset("fashion-mnist", other, tmp_path / "data")


def test_a_folder_of_somebody_elses_is_not_touched(tmp_path):
    (tmp_path / "data" / "fashion-mnist" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="found something else; move it away"):
        prepare_dataset("fashion-mnist", write_source(tmp_path / "source"), tmp_path / "data")


def test_a_shapes_task_is_prepared_without_a_source(tmp_path):
    config = ShapesConfig(image_size=16, num_train=8, num_val=4, num_test=0)
    result = prepare_dataset("shapes-shape-b", None, tmp_path, config)
    assert (result.counts, result.num_classes) == ({"train": 8, "val": 4, "test": 0}, 4)


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("fashion-mnist", None, "expected --source PATH; get the files from"),
        ("fashion-mnist", "nowhere", "expected the files of fashion-mnist, found nothing there"),
        ("fashion-mnist", ".", "found no train-images-idx3-ubyte"),
        ("fashion-mnist", "notes.txt", "found another file"),
        ("cub-birds-200", ".", "can't convert this one yet"),
        ("shapes-shape-a", ".", "expected no --source"),
        ("mnist", ".", "did you mean 'fashion-mnist'"),
    ],
)
def test_a_preparation_that_makes_no_sense_is_refused_and_writes_nothing(tmp_path, name, source, message):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "notes.txt").touch()
    with pytest.raises(DataError, match=message) as caught:
        prepare_dataset(name, source and tmp_path / "files" / source, tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train_images_idx3_ubyte", b"", "begins with 00000803, found nothing"),
        ("train_images_idx3_ubyte", b"\x89PNG1234567890123", "begins with 00000803, found 89504e47"),
        ("train_labels_idx1_ubyte", idx_bytes(np.zeros((3, 2, 2), np.uint8)), "begins with 00000801, found 00000803"),
        ("train_labels_idx1_ubyte", idx_bytes(np.zeros(7, np.uint8)), "expected 30 labels .* found 7"),
        ("t10k_labels_idx1_ubyte", idx_bytes(np.full(10, 10, np.uint8)), "expected labels 0 to 9, found 10"),
        (
            "t10k_images_idx3_ubyte",
            idx_bytes(np.zeros((10, 28, 28), np.uint8))[:-1],
            "expected 7840 bytes .* found 7839",
        ),
        ("t10k_images_idx3_ubyte", idx_bytes(np.zeros((10, 28, 28), np.uint8)) + b"x", "found more"),
        ("train_images_idx3_ubyte", struct.pack(">4I", 0x803, *[2**32 - 1] * 3), "at most 1073741824 bytes"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_a_malformed_file_is_named_and_nothing_is_left(tmp_path, file, content, message, packed):
    source = write_source(tmp_path / "source", packed, **{file: content})
    with pytest.raises(DataError, match=message) as caught:
        prepare_dataset("fashion-mnist", source, tmp_path / "data")
    assert file.replace("_", "-") in str(caught.value)
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("cut", [0, 5, 200, -4])
def test_a_torn_gzip_file_is_refused(tmp_path, cut):
    path = tmp_path / "images.gz"
    noise = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    path.write_bytes(gzip.compress(idx_bytes(noise))[:cut])
    with pytest.raises(DataError, match=r"images\.gz: "):
        read_idx(path, 0x803)


def test_classes_that_would_share_a_folder_are_refused(tmp_path):
    with new_folder(tmp_path / "it", {}) as folder:
        folder.add_image("train", "a/b", "0.png", b"")
        with pytest.raises(DataError, match="'a_b': expected a folder name of its own, found that 'a/b'"):
            folder.add_image("test", "a_b", "0.png", b"")


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("T-shirt/top", "T-shirt_top"), ("..", "_"), (".hidden", "_hidden"), ("", "_"), ("a\\b\0c", "a_b_c"),
        ("../../etc", "__.._etc"), ("Ankle boot", "Ankle boot"), ("naïve", "naïve"),
    ],
)  # fmt: skip
def test_no_class_name_leaves_its_folder(name, slug):
    assert class_slug(name) == slug


def test_what_a_killed_process_left_a_day_ago_is_removed(tmp_path):
    for name, age_s in ((".it.0a.partial", 100_000), (".it.0b.partial", 10), (".other.0c.partial", 100_000)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    with new_folder(tmp_path / "it", {}) as folder:
        folder.add_class("train", "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".it.0b.partial", ".other.0c.partial", "it"]


def test_the_first_of_two_writers_wins(tmp_path):
    with new_folder(tmp_path / "it", {"writer": "late"}) as late:
        late.add_image("train", "a", "0.png", b"late")
        with new_folder(tmp_path / "it", {"writer": "early"}) as early:
            early.add_image("train", "a", "0.png", b"early")
    assert (tmp_path / "it" / "train" / "a" / "0.png").read_bytes() == b"early"
    assert [path.name for path in tmp_path.iterdir()] == ["it"]
