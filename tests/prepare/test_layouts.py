"""The layouts of the nine named datasets: what their sources get wrong, and what only looks wrong."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.support import official_sources
from tests.support.official_sources import UNPACKED, Files, jpeg, mat, pack, write_folder
from tests.support.preparation import images_of, prepare, refuse


def edited(name: str, file: str, change: Callable[[str], str]) -> Files:
    files = UNPACKED[name]()
    (path,) = [path for path in files if path.endswith(file)]
    return files | {path: change(files[path].decode()).encode()}


def without(name: str, *endings: str) -> Files:
    return {path: content for path, content in UNPACKED[name]().items() if not path.endswith(endings)}


def without_class(name: str, class_name: str) -> Files:
    return {path: content for path, content in UNPACKED[name]().items() if f"/{class_name}/" not in path}


def shuffled(text: str) -> str:
    lines = text.splitlines()
    return "\n".join(lines[i] for i in np.random.default_rng(3).permutation(len(lines)))


def renamed_class(name: str) -> Files:
    return {path.replace("Aves", name): content for path, content in official_sources.inaturalist().items()}


def lists_with_folders_twice() -> Files:
    files = official_sources.cars()
    return {path.replace("cars_train/", "cars_train/cars_train/").replace("cars_test/", "cars_test/cars_test/"): content
            for path, content in files.items()}  # fmt: skip


HARMLESS = {
    "shuffled image list": ("cub-birds-200", edited("cub-birds-200", "/images.txt", shuffled)),
    "shuffled split list": ("cub-birds-200", edited("cub-birds-200", "/train_test_split.txt", shuffled)),
    "shuffled labels": ("cub-birds-200", edited("cub-birds-200", "/image_class_labels.txt", shuffled)),
    "Windows line ends": (
        "cub-birds-200",
        edited("cub-birds-200", "/images.txt", lambda text: text.replace("\n", "\r\n")),
    ),
    "empty lines at the end": ("cub-birds-200", edited("cub-birds-200", "/classes.txt", lambda text: f"{text}\n\n")),
    "byte order mark": ("cub-birds-200", edited("cub-birds-200", "/images.txt", lambda text: f"\ufeff{text}")),
    "image in no list": (
        "cub-birds-200",
        official_sources.cub() | {"CUB_200_2011/images/001.Black_footed_Albatross/x.jpg": jpeg()},
    ),
    "folders in folders of that name": ("stanford-cars", lists_with_folders_twice()),
    "bundle of class folders": ("stanford-cars", official_sources.cars_bundle()),
    "what file managers leave": (
        "food-101",
        official_sources.food()
        | dict.fromkeys(
            (
                "food-101/images/apple_pie/._1.jpg",
                "food-101/images/apple_pie/Thumbs.db",
                ".DS_Store",
                "__MACOSX/food-101/meta/train.json",
                "food-101/meta/._train.json",
            ),
            b"junk",
        ),
    ),
    "spaces in a class": ("inaturalist-12k", renamed_class("Aves of the sea")),
}


@pytest.mark.parametrize("case", HARMLESS)
@pytest.mark.parametrize("packed", [True, False])
def test_what_only_looks_wrong_changes_nothing(tmp_path, case, packed):
    name, files = HARMLESS[case]
    if packed:
        source = tmp_path / "source.zip"
        source.write_bytes(pack(source.name, files))
    else:
        source = write_folder(tmp_path / "source", files)
    result = prepare(name, source, tmp_path / "data")
    if "bundle" in case:
        assert (result.counts, result.num_classes) == ({"train": 6, "val": 0, "test": 4}, 2)
        return
    reference = prepare(name, write_folder(tmp_path / "reference", UNPACKED[name]()), tmp_path / "reference data")
    assert sorted(images_of(result).values()) == sorted(images_of(reference).values())
    assert result.counts == reference.counts


def swap(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new, 1)


def cub_with(file: str, change: Callable[[str], str]) -> Files:
    return edited("cub-birds-200", f"/{file}", change)


def dogs_with(**variables) -> Files:
    return official_sources.dogs() | {"train_list.mat": mat(**variables)}


CHIHUAHUA = "n02085620-Chihuahua/n02085620_"
FIRST_BIRD = "1 001.Black_footed_Albatross/Bird_0000_796111.jpg"
TWO_DOGS = official_sources.cells([f"{CHIHUAHUA}1.jpg", f"{CHIHUAHUA}2.jpg"])
CUB_LABELS, CUB_SPLITS = "image_class_labels.txt", "train_test_split.txt"
CARS, WOOF, INATURALIST = official_sources.cars(), official_sources.woof(), official_sources.inaturalist()

FAULTY_CUB = {
    "missing image": (without("cub-birds-200", "Bird_0002_796113.jpg"), "1 of them missing: .*Bird_0002"),
    "id in split but not in images": (
        cub_with(CUB_SPLITS, lambda text: f"{text}77 1\n"),
        "train_test_split.txt: expected the image ids of images.txt, found id '77' not in images.txt",
    ),
    "id in images but not in labels": (
        cub_with(CUB_LABELS, lambda text: text.split("\n", 1)[1]),
        "found id '1' not in image_class_labels.txt",
    ),
    "label out of range": (
        cub_with(CUB_LABELS, swap("5 1", "5 201")),
        "expected labels 1 to 2, found '201' for image 5",
    ),
    "label zero": (cub_with(CUB_LABELS, swap("5 1", "5 0")), "found '0' for image 5"),
    "split that is none": (cub_with(CUB_SPLITS, swap("3 1", "3 2")), "expected 0 or 1, found '2'"),
    "line twice": (
        cub_with("images.txt", lambda text: text + FIRST_BIRD),
        "expected each number once, found 1 again in line 11",
    ),
    "image twice": (
        cub_with("images.txt", swap("Bird_0002_796113", "Bird_0000_796111")),
        "expected each image listed once",
    ),
    "label of another folder": (
        cub_with(CUB_LABELS, swap("1 1\n", "1 2\n")),
        "expected image 1 in '002.Laysan_Albatross', found '001",
    ),
    "line without a value": (
        cub_with("images.txt", lambda text: f"nonsense\n{text}"),
        'expected "NUMBER VALUE" in line 1',
    ),
    "list gone": (without("cub-birds-200", "/classes.txt"), "expected CUB_200_2011/classes.txt, found none"),
    "list that is no text": (
        official_sources.cub() | {"CUB_200_2011/images.txt": b"\xff\xfe1"},
        "images.txt: expected UTF-8 text",
    ),
    "path out of the folder": (
        cub_with("images.txt", swap(FIRST_BIRD, "1 001.Black_footed_Albatross/../../../../x.jpg")),
        "1 of them missing",
    ),
}
FAULTY_FOOD = {
    "id in train and test": (
        edited("food-101", "/train.json", swap("1005649", "1005679")),
        "listed once, found it in train and again in test",
    ),
    "id of another class": (
        edited("food-101", "/train.json", swap("apple_pie/1005649", "baklava/1005649")),
        "expected images of 'apple_pie', found 'baklava/1005649'",
    ),
    "list that is no JSON": (edited("food-101", "/train.json", lambda text: text[:-5]), "train.json: expected JSON"),
    "list that is other JSON": (
        edited("food-101", "/test.json", lambda text: "[1]"),
        "test.json: expected an object of lists",
    ),
    "list nested too deep": (
        edited("food-101", "/test.json", lambda text: "[" * 100_000),
        "test.json: expected JSON",
    ),
}
FAULTY_CLASS_FOLDERS = {
    "unknown WordNet id": ("image-woof", WOOF | {"imagewoof2-160/train/n00000001/x.JPEG": jpeg()}, "found 'n00000001'"),
    "split gone": ("image-woof", without("image-woof", "_0.JPEG", "_1.JPEG"), "found no images for val"),
    "class only in val": (
        "inaturalist-12k",
        INATURALIST | {"inaturalist_12K/val/Fungi/1.jpg": jpeg()},
        "expected a class that train/ has too",
    ),
    "two trees": (
        "inaturalist-12k",
        INATURALIST | {"copy/train/Aves/1.jpg": jpeg()},
        "expected one folder with train/<class>/<image>, found 2",
    ),
    "names that differ in case": (
        "inaturalist-12k",
        INATURALIST | {"inaturalist_12K/train/Aves/AVES_0.jpg": jpeg()},
        "expected a unique name",
    ),
    "one class left": ("caltech-101", without_class("caltech-101", "accordion"), "at least 2, found 1"),
}
FAULTY_CARS = {
    "labelled list gone": (
        without("stanford-cars", "withlabels.mat"),
        r"expected one cars_test_annos_withlabels.mat \(the labels of the test images.*found none",
    ),
    "list without labels": (
        CARS | {"cars_test_annos_withlabels.mat": CARS["devkit/cars_test_annos.mat"]},
        "expected annotations with fname and class",
    ),
    "class out of range": (
        CARS | official_sources.cars_lists((1, 3)),
        "expected classes 1 to 2, found 3 for '00002.jpg'",
    ),
    "list that is no MATLAB file": (
        CARS | {"devkit/cars_meta.mat": b"x" * 500},
        "cars_meta.mat: expected a MATLAB 5 file",
    ),
    "list that is cut": (
        CARS | {"devkit/cars_meta.mat": CARS["devkit/cars_meta.mat"][:200]},
        "cars_meta.mat: expected",
    ),
}
FAULTY_DOGS = {
    "other variable": (dogs_with(other=[1]), "expected the variable 'file_list'"),
    "label beyond 120": (dogs_with(file_list=TWO_DOGS, labels=[[1], [121]]), f"found '{CHIHUAHUA}2.jpg' with 121"),
    "label for two folders": (
        dogs_with(file_list=official_sources.cells([f"{CHIHUAHUA}1.jpg", "n1-b/1.jpg"]), labels=[[1], [1]]),
        "expected label 1 for 'n02085620-Chihuahua' alone, found 'n1-b/1.jpg'",
    ),
    "fewer labels than files": (
        dogs_with(file_list=TWO_DOGS, labels=[[1]]),
        "expected 2 labels as there are files, found 1",
    ),
    "path without a folder": (
        dogs_with(file_list=official_sources.cells(["a.jpg", "b.jpg"]), labels=[[1], [2]]),
        "expected paths WNID-BREED/FILE",
    ),
    "folder of images gone": (without("stanford-dogs", ".jpg"), "found neither"),
}
FAULTY = {
    **{case: ("cub-birds-200", *fault) for case, fault in FAULTY_CUB.items()},
    **{case: ("food-101", *fault) for case, fault in FAULTY_FOOD.items()},
    **{f"cars: {case}": ("stanford-cars", *fault) for case, fault in FAULTY_CARS.items()},
    **{f"dogs: {case}": ("stanford-dogs", *fault) for case, fault in FAULTY_DOGS.items()},
    **FAULTY_CLASS_FOLDERS,
}
ALLOWED_TOO = {"missing image", "path out of the folder"}


@pytest.mark.parametrize("case", FAULTY)
def test_a_faulty_source_is_refused_with_the_file_and_the_fault(tmp_path, case):
    name, files, message = FAULTY[case]
    source = write_folder(tmp_path / "source", files)
    if case not in ALLOWED_TOO:
        refuse(name, source, tmp_path / "data", message)
    else:
        refuse(name, source, tmp_path / "data", message, allow_other_counts=False)
        assert prepare(name, source, tmp_path / "data").counts["train"] == 5
