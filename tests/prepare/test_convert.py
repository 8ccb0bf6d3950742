"""Named datasets made from their makers' files, and folders that appear whole or not at all."""

import errno
import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raysnap.config.parts import ShapesConfig
from raysnap.datasets import image_folder as imagefolder
from raysnap.datasets.dataset import open_dataset
from raysnap.datasets.image_folder import FolderWriter
from raysnap.datasets.published import SOURCES
from raysnap.errors import DataError
from raysnap.prepare.convert import PrepareResult, prepare_dataset
from raysnap.prepare.idx_files import read_idx
from raysnap.prepare.layouts import FASHION_MNIST_CLASSES, IMAGENETTE_CLASSES, LAYOUTS
from tests.support import ROOT, official_sources
from tests.support.official_sources import (
    CAR_CLASSES,
    NUM_TRAIN,
    UNPACKED,
    fashion_mnist,
    fashion_mnist_arrays,
    idx_bytes,
    jpeg,
    pack,
    published,
    tar_bytes,
    write_folder,
)
from tests.support.preparation import images_of, prepare, refuse

FASHION_MNIST_900 = ROOT.parent / "shared" / "data" / "fashion-mnist-900"

# Each dataset's tiny source: counts, the first class, and what classes.json says of it.
EXPECTED = {
    "cub-birds-200": ({"train": 6, "val": 0, "test": 4}, "001.Black_footed_Albatross", None),
    "food-101": ({"train": 9, "val": 0, "test": 6}, "apple_pie", None),
    "image-woof": ({"train": 9, "val": 6, "test": 0}, "Dingo", "n02115641"),
    "imagenette": ({"train": 6, "val": 4, "test": 0}, "church", "n03028079"),
    "stanford-cars": ({"train": 6, "val": 0, "test": 4}, CAR_CLASSES[0], CAR_CLASSES[0]),
    "stanford-dogs": ({"train": 6, "val": 0, "test": 4}, "Chihuahua", "n02085620-Chihuahua"),
    "fashion-mnist": ({"train": 30, "val": 0, "test": 10}, "Ankle boot", "Ankle boot"),
    "inaturalist-12k": ({"train": 9, "val": 0, "test": 6}, "Amphibia", None),
    "imdb": ({"train": 6, "val": 0, "test": 6}, "neg", None),
    "caltech-101": ({"train": 60, "val": 0, "test": 7}, "Faces_easy", None),
}
TOP_FOLDERS = {
    "cub-birds-200": "CUB_200_2011",
    "food-101": "food-101",
    "image-woof": "imagewoof2-160",
    "imagenette": "imagenette2",
    "inaturalist-12k": "inaturalist_12K",
    "imdb": "aclImdb",
}
FOLDERS = sorted(set(UNPACKED) - {"fashion-mnist"})


def record_of(result: PrepareResult) -> dict:
    return json.loads((result.dataset.root / "dataset.json").read_text())


# All nine


@pytest.mark.parametrize("form", ["published", "unpacked", "unpacked without the folder on top", "one file"])
@pytest.mark.parametrize("name", UNPACKED)
def test_every_form_of_a_source_gives_the_same_folder(tmp_path, name, form):
    reference = prepare(name, write_folder(tmp_path / "reference", UNPACKED[name]()), tmp_path / "a")
    source = write_folder(
        tmp_path / "source", published(name) if form in ("published", "one file") else UNPACKED[name]()
    )
    if form == "one file":
        source = source / next(iter(published(name)))
    elif form == "unpacked without the folder on top":
        source = source / TOP_FOLDERS.get(name, "")
    result = prepare(name, source, tmp_path / "b")
    counts, first_class, original = EXPECTED[name]
    assert (result.counts, result.dataset.classes[0], result.num_bad) == (counts, first_class, 0)
    assert images_of(result) == images_of(reference)
    assert record_of(result)["digest"] == record_of(reference)["digest"]
    names = result.dataset.root / "classes.json"
    assert (json.loads(names.read_text())[first_class] if names.exists() else None) == original


@pytest.mark.parametrize("name", FOLDERS)
def test_every_image_keeps_its_bytes(tmp_path, name):
    files = UNPACKED[name]()
    result = prepare(name, write_folder(tmp_path / "source", files), tmp_path / "data")
    sources: dict[str, set[bytes]] = {}
    for path, content in files.items():
        sources.setdefault(Path(path).name, set()).add(content)
    assert images_of(result)
    assert all(content in sources[Path(path).name] for path, content in images_of(result).items())


@pytest.mark.parametrize("suffix", [".tgz", ".tar.gz", ".tar", ".zip"])
@pytest.mark.parametrize("name", sorted({*FOLDERS} - {"stanford-dogs", "stanford-cars"}))
def test_an_archive_packed_in_another_way_gives_the_same(tmp_path, name, suffix):
    path = tmp_path / f"renamed{suffix}"
    path.write_bytes(pack(path.name, UNPACKED[name]()))
    assert prepare(name, path, tmp_path / "data").counts == EXPECTED[name][0]


@pytest.mark.parametrize("name", UNPACKED)
def test_other_counts_or_digests_than_published_are_refused(tmp_path, name):
    source = write_folder(tmp_path / "source", UNPACKED[name]())
    refuse(name, source, tmp_path / "data", r"expected .* found .*pass --allow-other-counts", allow_other_counts=False)
    result = prepare(name, source, tmp_path / "data")
    assert any("expected" in note and "found" in note for note in record_of(result)["differences"])


@pytest.mark.parametrize("name", UNPACKED)
def test_published_counts_and_digests_need_no_option(tmp_path, name, monkeypatch):
    counts = {split: number for split, number in EXPECTED[name][0].items() if number}
    source = write_folder(tmp_path / "source", UNPACKED[name]())
    num_classes = prepare(name, source, tmp_path / "first").num_classes
    files = tuple(replace(file, digest=None) for file in SOURCES[name].files)
    as_published = replace(SOURCES[name], counts=counts, num_classes=num_classes, files=files)
    monkeypatch.setitem(SOURCES, name, as_published)
    result = prepare_dataset(name, source, tmp_path / "data")
    assert record_of(result)["differences"] == []


def test_another_archive_with_the_right_counts_is_refused(tmp_path, monkeypatch):
    source = write_folder(tmp_path / "source", published("food-101"))
    as_published = replace(SOURCES["food-101"], counts={"train": 9, "test": 6}, num_classes=3)
    monkeypatch.setitem(SOURCES, "food-101", as_published)
    message = "food-101.tar.gz: expected md5 85eeb15f3717b99a5da872d97d918f87 as published, found [0-9a-f]{32}; "
    refuse("food-101", source, tmp_path / "data", message, allow_other_counts=False)


def test_a_difference_names_split_class_and_numbers(tmp_path, monkeypatch):
    files = official_sources.food()
    monkeypatch.setitem(
        SOURCES, "food-101", replace(SOURCES["food-101"], counts={"train": 9, "test": 6}, num_classes=3)
    )
    del files["food-101/images/baklava/1005651.jpg"]
    source = write_folder(tmp_path / "source", files)
    refuse(
        "food-101",
        source,
        tmp_path / "data",
        r"expected 15 listed images, found 1 of them missing: 'food-101/images/baklava/1005651.jpg'; "
        r"train: expected 9 images, found 8 \(3 of each class; baklava has 2\)",
        allow_other_counts=False,
    )
    result = prepare("food-101", source, tmp_path / "data")
    assert result.counts == {"train": 8, "val": 0, "test": 6}


def test_the_record_says_what_from_what_and_on_what_terms(tmp_path):
    result = prepare("imagenette", write_folder(tmp_path / "source", published("imagenette")), tmp_path / "data")
    record = record_of(result)
    content = published("imagenette")["imagenette2.tgz"]
    assert record["files"][0]["name"] == "imagenette2.tgz"
    assert (
        record["files"][0]["num_bytes"]
        == len((tmp_path / "source" / "imagenette2.tgz").read_bytes())
        > 0
        < len(content)
    )
    assert len(record["files"][0]["sha256"]) == 64
    assert record["counts"] == {"train": 6, "val": 4}
    assert record["class_counts"] == {"train": {"church": 3, "tench": 3}, "val": {"church": 2, "tench": 2}}
    assert "non-commercial" in record["licence"]
    assert "ImageNet" in record["overlap_with_imagenet"]
    assert record["page"].startswith("https://")
    assert record["splits"] and record["bad_images"] == []


@pytest.mark.parametrize("form", ["published", "unpacked"])
@pytest.mark.parametrize("name", UNPACKED)
def test_preparing_twice_changes_nothing(tmp_path, name, form):
    source = write_folder(tmp_path / "source", published(name) if form == "published" else UNPACKED[name]())
    first = prepare(name, source, tmp_path / "data")
    before = first.dataset.root.stat().st_ctime_ns
    assert prepare(name, source, tmp_path / "data") == first
    assert first.dataset.root.stat().st_ctime_ns == before


@pytest.mark.parametrize("name", ["imagenette", "food-101", "caltech-101"])
def test_what_was_made_below_the_source_is_no_part_of_it(tmp_path, name):
    write_folder(tmp_path, UNPACKED[name]())
    first = prepare(name, tmp_path, tmp_path / "data")
    assert prepare(name, tmp_path, tmp_path / "data") == first


@pytest.mark.parametrize("path", ["Aves/a\udcff.jpg", "A\udcffves/a.jpg", "Aves/a\nb.jpg", "Aves/a\\b.jpg"])
def test_a_file_name_that_not_every_system_could_hold_is_refused(tmp_path, path):
    files = official_sources.inaturalist() | {f"inaturalist_12K/train/{path}": jpeg()}
    source = write_folder(tmp_path / "source", files)
    refuse("inaturalist-12k", source, tmp_path / "data", "expected a name below the archive's folder, found")


def test_a_file_that_is_in_two_archives_is_refused(tmp_path):
    files = published("stanford-dogs") | {"lists.tar": tar_bytes(official_sources.dogs())}
    source = write_folder(tmp_path / "source", files)
    refuse("stanford-dogs", source, tmp_path / "data", "expected each file once, found 'Images/.* in two archives")


def test_another_source_does_not_replace_what_is_there(tmp_path):
    prepare("fashion-mnist", write_folder(tmp_path / "source", fashion_mnist()), tmp_path / "data")
    changed = fashion_mnist(train_labels_idx1_ubyte=idx_bytes(np.arange(NUM_TRAIN, dtype=np.uint8)[::-1] % 10))
    with pytest.raises(DataError, match="found one with other files.*delete that folder"):
        prepare("fashion-mnist", write_folder(tmp_path / "other", changed), tmp_path / "data")


def test_a_changed_image_of_an_unpacked_folder_is_another_source(tmp_path):
    source = write_folder(tmp_path / "source", official_sources.woof())
    prepare("image-woof", source, tmp_path / "data")
    image = source / "imagewoof2-160" / "train" / "n02086240" / "n02086240_0.JPEG"
    image.unlink()
    image.write_bytes(jpeg(99))
    with pytest.raises(DataError, match="found one with other files"):
        prepare("image-woof", source, tmp_path / "data")


def test_a_folder_of_somebody_elses_is_not_touched(tmp_path):
    (tmp_path / "data" / "fashion-mnist" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="found something else; move it away"):
        prepare("fashion-mnist", write_folder(tmp_path / "source", fashion_mnist()), tmp_path / "data")


def test_images_of_an_unpacked_folder_are_linked_not_copied(tmp_path):
    source = write_folder(tmp_path / "source", official_sources.food())
    result = prepare("food-101", source, tmp_path / "data")
    image = result.dataset.splits["train"][0].path
    assert image.samefile(source / "food-101" / "images" / image.parent.name / image.name)


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_images_are_copied_where_links_are_refused(tmp_path, monkeypatch, code):
    def link(*_args, **_options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(imagefolder.os, "link", link)
    result = prepare("food-101", write_folder(tmp_path / "source", official_sources.food()), tmp_path / "data")
    assert result.counts["train"] == 9
    assert all(item.path.stat().st_nlink == 1 for item in result.dataset.splits["train"])


@pytest.mark.parametrize("name", ["cub-birds-200", "stanford-dogs", "fashion-mnist", "caltech-101"])
def test_an_interrupted_preparation_leaves_nothing(tmp_path, name, monkeypatch):
    source = write_folder(tmp_path / "source", published(name))
    add_image, num_images = FolderWriter.add_image, 0

    def add_some(self, *arguments):
        nonlocal num_images
        num_images += 1
        if num_images > 3:
            raise KeyboardInterrupt
        add_image(self, *arguments)

    monkeypatch.setattr(FolderWriter, "add_image", add_some)
    with pytest.raises(KeyboardInterrupt):
        prepare(name, source, tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []
    monkeypatch.undo()
    assert prepare(name, source, tmp_path / "data").counts == EXPECTED[name][0]


def test_two_processes_may_prepare_the_same_at_once(tmp_path):
    source = write_folder(tmp_path / "source", published("caltech-101"))
    code = (
        "import sys, pathlib; from raysnap.prepare.convert import prepare_dataset\n"
        "source, data = map(pathlib.Path, sys.argv[1:])\n"
        "print(prepare_dataset('caltech-101', source, data, allow_other_counts=True).counts)"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "data")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    assert len({out for out, _ in outputs}) == 1
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["caltech-101"]


# What is kept and what is left out


def test_class_names_that_no_folder_can_have_are_kept(tmp_path):
    result = prepare("stanford-cars", write_folder(tmp_path / "source", official_sources.cars()), tmp_path / "data")
    names = json.loads((result.dataset.root / "classes.json").read_text())
    assert names["Ram C_V Cargo Van Minivan 2012"] == "Ram C/V Cargo Van Minivan 2012"


def test_a_png_that_is_called_jpg_is_kept_as_it_is(tmp_path):
    result = prepare("stanford-dogs", write_folder(tmp_path / "source", published("stanford-dogs")), tmp_path / "data")
    (path, *_) = (path for path in images_of(result) if path.endswith("n02085620_0.jpg"))
    with Image.open(result.dataset.root / path) as image:
        assert (image.format, image.mode) == ("PNG", "RGBA")


@pytest.mark.parametrize("content", [b"", b"GIF", b"<html>not found</html>", bytes(1000)])
def test_a_file_that_is_no_image_is_left_out_named_and_counted(tmp_path, content, caplog):
    files = official_sources.food() | {"food-101/images/apple_pie/1005649.jpg": content}
    source = write_folder(tmp_path / "source", files)
    result = prepare("food-101", source, tmp_path / "data")
    assert (result.num_bad, result.counts["train"]) == (1, 8)
    assert "apple_pie/1005649.jpg" in record_of(result)["bad_images"][0]
    assert "apple_pie/1005649.jpg" in caplog.text
    assert prepare("food-101", source, tmp_path / "data").num_bad == 1
    refuse("food-101", source, tmp_path / "strict", "at most 0 of 15 images to be bad, found more", max_bad=0)


GOLDEN_CALTECH_TEST = [
    "test/Faces_easy/image_0003.jpg",
    "test/Faces_easy/image_0027.jpg",
    "test/Faces_easy/image_0028.jpg",
    "test/Faces_easy/image_0030.jpg",
    "test/accordion/image_0018.jpg",
    "test/accordion/image_0027.jpg",
    "test/accordion/image_0030.jpg",
]


def test_the_split_of_caltech_101_is_the_same_everywhere(tmp_path):
    result = prepare("caltech-101", write_folder(tmp_path / "source", official_sources.caltech()), tmp_path / "data")
    assert result.dataset.classes == ("Faces_easy", "accordion")
    test = [path for path in images_of(result) if path.startswith("test/")]
    assert sorted(test) == GOLDEN_CALTECH_TEST
    assert "none official" in record_of(result)["splits"]


def test_the_test_split_of_inaturalist_is_the_publishers_val(tmp_path):
    files = official_sources.inaturalist()
    result = prepare("inaturalist-12k", write_folder(tmp_path / "source", files), tmp_path / "data")
    assert images_of(result)["test/Aves/Aves_1.jpg"] == files["inaturalist_12K/val/Aves/Aves_1.jpg"]
    assert "val is test" in record_of(result)["splits"]


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        (
            "imagenette",
            {"imagenette2.tgz": b"", "imagenette2-160.tgz": b""},
            "expected one archive .* pass the one to use",
        ),
        (
            "imagenette",
            {"notes.txt": b""},
            "expected imagenette2.tgz, or a folder into which that was unpacked, found neither",
        ),
        ("imagenette", {}, "found neither; get the files from Imagenette, https"),
        ("stanford-cars", {"cars_train.tgz": pack("a.tgz", {})}, "expected one cars_meta.mat, found none"),
        (
            "cub-birds-200",
            {"CUB_200_2011.tgz": pack("a.tgz", {"README": b""})},
            "expected one train_test_split.txt, found none",
        ),
        ("caltech-101", {"caltech-101.zip": pack("a.zip", {"a": b""})}, "expected one folder 101_ObjectCategories/"),
    ],
)
def test_a_source_without_the_dataset_is_refused(tmp_path, name, files, message):
    (tmp_path / "source").mkdir()
    refuse(name, write_folder(tmp_path / "source", files), tmp_path / "data", message)


def test_all_named_datasets_have_a_source_and_a_layout():
    assert sorted(SOURCES) == sorted(LAYOUTS) == sorted(UNPACKED)
    for source in SOURCES.values():
        assert all(file.url is None or file.url.startswith("https://") for file in (*source.files, *source.variants))
        assert source.page and source.licence and source.num_classes >= 2


def test_imagenette_class_names_are_torchvisions():
    from torchvision.datasets import Imagenette

    assert {wnid: names[0] for wnid, names in Imagenette._WNID_TO_CLASS.items()} == IMAGENETTE_CLASSES


def test_published_digests_are_torchvisions():
    from torchvision.datasets import FashionMNIST, Food101, Imagenette

    expected = {
        **dict(FashionMNIST.resources),
        "food-101.tar.gz": Food101._MD5,
        **{Path(url).name: md5 for url, md5 in Imagenette._ARCHIVES.values()},
    }
    names = ("fashion-mnist", "food-101", "imagenette")
    files = [file for name in names for file in (*SOURCES[name].files, *SOURCES[name].variants)]
    assert {file.name: file.digest for file in files} == {name: f"md5:{md5}" for name, md5 in expected.items()}


# Fashion-MNIST


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", ["", "raw", "FashionMNIST/raw"])
def test_fashion_mnist_keeps_every_pixel(tmp_path, packed, place):
    write_folder(tmp_path / "source" / place, fashion_mnist(packed))
    result = prepare("fashion-mnist", tmp_path / "source", tmp_path / "data")
    assert (result.counts, result.num_classes, result.num_bad) == ({"train": 30, "val": 0, "test": 10}, 10, 0)
    assert result.dataset == open_dataset("fashion-mnist", tmp_path / "data")
    originals = json.loads((tmp_path / "data" / "fashion-mnist" / "classes.json").read_text())
    assert originals["T-shirt_top"] == "T-shirt/top"
    assert len(record_of(result)["files"]) == 4
    arrays = fashion_mnist_arrays()
    for split, prefix in (("train", "train"), ("test", "t10k")):
        assert len(result.dataset.splits[split]) == len(arrays[f"{prefix}-labels-idx1-ubyte"])
        for item in result.dataset.splits[split]:
            index = int(item.path.stem)
            with Image.open(item.path) as image:
                assert np.array_equal(np.asarray(image), arrays[f"{prefix}-images-idx3-ubyte"][index])
            label = arrays[f"{prefix}-labels-idx1-ubyte"][index]
            assert originals[item.path.parent.name] == FASHION_MNIST_CLASSES[label]


@pytest.mark.skipif(not FASHION_MNIST_900.is_dir(), reason="the real images are not beside the checkout")
def test_real_fashion_mnist_images_become_an_image_folder(tmp_path):
    result = prepare("fashion-mnist", FASHION_MNIST_900, tmp_path / "data")
    assert sum(result.counts.values()) == 900
    assert result.num_classes == 10
    labels_N = read_idx((FASHION_MNIST_900 / "train-labels-idx1-ubyte.gz").read_bytes(), "labels", 0x801)
    assert result.counts["train"] == len(labels_N)


def test_one_of_the_files_finds_all_four(tmp_path):
    source = write_folder(tmp_path / "source", fashion_mnist() | {"another.txt": b""})
    assert (
        prepare("fashion-mnist", source / "train-labels-idx1-ubyte.gz", tmp_path / "data").counts["train"] == NUM_TRAIN
    )


def test_a_shapes_task_is_prepared_without_a_source(tmp_path):
    config = ShapesConfig(image_size=16, num_train=8, num_val=4, num_test=0)
    result = prepare_dataset("shapes-shape-b", None, tmp_path, config)
    assert (result.counts, result.num_classes) == ({"train": 8, "val": 4, "test": 0}, 4)


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("fashion-mnist", None, "expected --source PATH; get the files from"),
        ("fashion-mnist", "nowhere", "expected the files of fashion-mnist, found no such file or folder"),
        ("fashion-mnist", ".", "expected train-images-idx3-ubyte.gz"),
        ("fashion-mnist", "notes.txt", "found another file"),
        ("shapes-shape-a", ".", "expected no --source"),
        ("mnist", ".", "did you mean 'fashion-mnist'"),
    ],
)
def test_a_wrong_preparation_is_refused_and_writes_nothing(tmp_path, name, source, message):
    write_folder(tmp_path / "files", {"notes.txt": b""})
    refuse(name, source and tmp_path / "files" / source, tmp_path / "data", message)
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
    source = write_folder(tmp_path / "source", fashion_mnist(packed, **{file: content}))
    assert file.replace("_", "-") in refuse("fashion-mnist", source, tmp_path / "data", message)
