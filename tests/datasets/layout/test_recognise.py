"""Folders as people have them: read as what they are, or refused with what to do; and no file vanishes."""

from pathlib import Path

import pytest

from raysnap.datasets.dataset import Dataset, read_folder
from raysnap.errors import DataError
from tests.support.found_folders import CLASSES, FOUND, Maker

# What each folder is read as: the classes, the images per split, how many files somebody may miss.
READ = {
    "roboflow": (CLASSES, {"train": 12, "val": 6, "test": 3}, 0),
    "roboflow_one_hot": (CLASSES, {"train": 12, "val": 6}, 0),
    "kaggle": (CLASSES, {"train": 12}, 4),
    "synology": (CLASSES, {"train": 12, "val": 6}, 0),
    "macos_zip": (CLASSES, {"train": 12, "val": 6}, 0),
    "hf_imagefolder": (CLASSES, {"train": 12, "val": 6}, 0),
    "imagenet": (("n01440764", "n01443537", "n01484850"), {"train": 12, "val": 6}, 3),
    "tiny_imagenet": (("n01443537", "n01629819", "n01641577"), {"train": 12, "val": 6}, 3),
    "label_studio": (CLASSES, {"train": 12}, 0),
    "phone": (CLASSES, {"train": 15}, 12),
}
REFUSED = {
    "hf_parquet": r"found 2\s+parquet files, such as data/test-0.*; `raysnap data prepare NAME --source \S+` makes",
    "webdataset": r"found 4\s+tar files, such as train-000000\.tar; `raysnap data prepare NAME --source \S+` makes",
    "taxonomy": r"train/animals/cat: 2 classes by the outer folders, 6 by the inner; .*--class-folders outer",
}


def num_files(root: Path) -> int:
    """Return how many files a folder holds, those that begin with a dot too."""
    return sum(path.is_file() for path in root.rglob("*"))


def labels_of(dataset: Dataset, split: str) -> dict[str, str]:
    """Return the class of each image of a split, by its path."""
    items = dataset.splits[split]
    return {item.path.relative_to(dataset.root).as_posix(): dataset.classes[item.label] for item in items}


def filled(root: Path, *folders: str, count: int = 2) -> Maker:
    """Fill folders with images."""
    make = Maker(root)
    for folder in folders:
        make.images(folder, count)
    return make


def test_every_folder_is_read_or_refused():
    assert READ.keys() | REFUSED.keys() == FOUND.keys()


@pytest.mark.parametrize("name", READ)
def test_a_found_folder_is_read_and_no_file_vanishes(tmp_path, name):
    FOUND[name](tmp_path)
    dataset = read_folder(tmp_path)
    classes, counts, num_missed = READ[name]
    assert (dataset.classes, {split: len(items) for split, items in dataset.splits.items()}) == (classes, counts)
    assert sum(one.num_files for one in dataset.left_out if not one.is_expected) == num_missed
    assert sum(counts.values()) + dataset.account().num_left_out == num_files(tmp_path)


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_of_two_meanings_is_refused_with_a_line(tmp_path, name):
    FOUND[name](tmp_path)
    with pytest.raises(DataError, match=REFUSED[name]) as caught:
        read_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_labels_of_a_table_are_those_of_its_rows(tmp_path):
    FOUND["kaggle"](tmp_path)
    labels = labels_of(read_folder(tmp_path), "train")
    assert labels == {f"train/{number:032x}.jpg": CLASSES[number % 3] for number in range(12)}


# Splits


@pytest.mark.parametrize("name", ["valid", "validation", "dev", "eval", "Val", "VALIDATION", "val2017", "valid_images"])
def test_val_by_any_of_its_names(tmp_path, name):
    filled(tmp_path, "train/cat", "train/dog", f"{name}/cat", f"{name}/dog")
    dataset = read_folder(tmp_path)
    assert {split: len(items) for split, items in dataset.splits.items()} == {"train": 4, "val": 4}
    assert dataset.notes == (f"{name}/ is read as val",)


@pytest.mark.parametrize(("name", "split"), [("Test", "test"), ("testing", "test"), ("Training", "train")])
def test_other_splits_by_their_names(tmp_path, name, split):
    filled(tmp_path, "train/cat" if split != "train" else "val/cat", f"{name}/cat", f"{name}/dog")
    if split != "train":
        filled(tmp_path, "train/dog")
    assert len(read_folder(tmp_path).splits[split]) == 4


def test_eval_beside_val_is_test(tmp_path):
    filled(tmp_path, "train/cat", "train/dog", "val/cat", "eval/cat")
    assert {split: len(items) for split, items in read_folder(tmp_path).splits.items()} == {
        "train": 4, "val": 2, "test": 2,
    }  # fmt: skip


def test_two_folders_for_one_split_are_refused(tmp_path):
    filled(tmp_path, "train/cat", "train/dog", "val/cat", "valid/cat")
    with pytest.raises(DataError, match=r"expected one folder for val, found val and valid; merge them"):
        read_folder(tmp_path)


def test_folders_beside_the_splits_are_named(tmp_path):
    filled(tmp_path, "train/cat", "train/dog", "holdout/cat", "holdout/dog").image("loose.jpg")
    dataset = read_folder(tmp_path)
    missed = {one.path: one.num_files for one in dataset.left_out if not one.is_expected}
    assert missed == {"holdout": 4, "loose.jpg": 1}


def test_a_class_may_be_called_like_a_split(tmp_path):
    filled(tmp_path, "train", "car", "test_tube")
    assert read_folder(tmp_path).classes == ("car", "test_tube", "train")


def test_a_class_of_test_alone_is_no_fault_of_the_folder(tmp_path):
    filled(tmp_path, "train/cat", "train/dog", "val/cat", "test/cow")
    dataset = read_folder(tmp_path)
    assert dataset.classes == ("cat", "dog", "cow")
    assert [item.label for item in dataset.splits["test"]] == [2, 2]


def test_splits_of_boxes_are_no_classes(tmp_path):
    filled(tmp_path, "train2017", "val2017").file("annotations/instances_val2017.json", "{}")
    with pytest.raises(DataError, match=r"/train2017: expected a folder per class, at least 2, found none"):
        read_folder(tmp_path)


def test_an_unlabelled_val_is_refused_with_what_to_do(tmp_path):
    filled(tmp_path, "train/cat", "train/dog", "val")
    with pytest.raises(DataError, match=r"/val: expected a folder per class.*but 2\s+images; .*--labels FILE"):
        read_folder(tmp_path)


# Nesting


@pytest.mark.parametrize("below", ["images", "2023/raw"])
def test_one_folder_in_every_class_is_part_of_it(tmp_path, below):
    filled(tmp_path, f"train/cat/{below}", f"train/dog/{below}")
    assert read_folder(tmp_path).classes == ("cat", "dog")


def test_the_same_folders_in_every_class_are_part_of_it(tmp_path):
    filled(tmp_path, *(f"train/{name}/{day}" for name in ("cat", "dog") for day in ("monday", "tuesday")))
    assert read_folder(tmp_path).classes == ("cat", "dog")


def test_images_beside_folders_of_a_class_are_told(tmp_path):
    filled(tmp_path, "train/cat", "train/dog", "train/dog/poodle")
    dataset = read_folder(tmp_path)
    assert len(dataset.splits["train"]) == 6
    assert "train/dog: the images in folders below it (poodle) are of class dog" in dataset.notes[0]


@pytest.mark.parametrize("folders", [("animals/cat", "animals/dog", "cars"), ("a/b/cat", "a/b/dog", "c/car")])
def test_nested_classes_are_refused_at_any_depth(tmp_path, folders):
    filled(tmp_path, *(f"train/{folder}" for folder in folders))
    with pytest.raises(DataError, match="2 classes by the outer folders, 3 by the inner"):
        read_folder(tmp_path)


def test_wrappings_are_looked_into(tmp_path):
    filled(tmp_path, "pets-main/data/train/cat", "pets-main/data/train/dog").file("pets-main/README.md")
    dataset = read_folder(tmp_path)
    assert len(dataset.splits["train"]) == 4
    assert [one.path for one in dataset.left_out] == ["pets-main/README.md"]


def test_a_folder_of_datasets_names_one_of_them(tmp_path):
    filled(tmp_path, "one/train/cat", "one/train/dog", "two/train/cat", "two/train/dog")
    with pytest.raises(DataError, match=r"found folders with splits of their own, such as one; pass \S+/one$"):
        read_folder(tmp_path)


# Tables


PETS = ("cat", "cat", "dog", "dog")


def table(make: Maker, name: str, *lines: str) -> None:
    make.file(name, "\n".join(lines) + "\n")


JSON_ROWS = [f'{{"file_name": "images/{index:03d}.jpg", "label": "{name}"}}' for index, name in enumerate(PETS)]
CHOICES = ('"cat"', '["cat"]', '"dog"', '"dog"')
OBJECTS = [f'{{"id": {index}, "image": "{index:03d}.jpg", "choice": {name}}}' for index, name in enumerate(CHOICES)]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("labels.csv", ["filename,label", *(f"{index:03d}.jpg,{name}" for index, name in enumerate(PETS))]),
        ("labels.csv", ["label;file", *(f"{name};{index:03d}.jpg" for index, name in enumerate(PETS))]),
        ("labels.tsv", ["id\tx\tclass", *(f"{index:03d}\t{index}\t{name}" for index, name in enumerate(PETS))]),
        ("list.txt", [f"images/{index:03d}.jpg {name}" for index, name in enumerate(PETS)]),
        (
            "x.csv",
            ["\ufeffpath,cat,dog", "./images/000.jpg,1,0", "/a/images/001.jpg,1,0", "002.jpg,0,1", "003.jpg,0,1"],
        ),
        ("metadata.jsonl", JSON_ROWS),
        ("a.json", [f"[{', '.join(OBJECTS)}]"]),
    ],
    ids=["csv", "semicolons", "tsv", "words", "one hot", "jsonl", "json"],
)
def test_tables_of_many_forms_say_the_same(tmp_path, name, lines):
    table(filled(tmp_path, "images", count=4), name, *lines)
    dataset = read_folder(tmp_path)
    assert list(labels_of(dataset, "train").values()) == ["cat", "cat", "dog", "dog"]
    assert [(one.path, one.reason) for one in dataset.left_out] == [(name, "the table of labels")]


def test_a_tables_own_splits_are_kept(tmp_path):
    lines = [f"{index:03d}.jpg,{'ab'[index % 2]},{('train', 'valid', 'test')[index // 4]}" for index in range(12)]
    table(filled(tmp_path, "images", count=12), "all.csv", "image,label,split", *lines)
    assert {split: len(items) for split, items in read_folder(tmp_path).splits.items()} == dict.fromkeys(
        ("train", "val", "test"), 4
    )


def test_a_split_folder_outweighs_a_tables_split(tmp_path):
    make = filled(tmp_path, "train", "val", count=4)
    rows = [f"{index:03d}.jpg,{'ab'[index % 2]},{('train', 'test')[index // 2]}" for index in range(4)]
    for folder in ("train", "val"):
        table(make, f"{folder}/metadata.csv", "file_name,label,split", *rows)
    assert {split: len(items) for split, items in read_folder(tmp_path).splits.items()} == {"train": 4, "val": 4}


def test_names_are_the_column_of_different_images(tmp_path):
    make = Maker(tmp_path)
    for number in range(6):
        make.image(f"images/{number}.jpg")
    table(make, "t.csv", "label,id", *(f"{number % 2},{number}" for number in range(6)))
    assert labels_of(read_folder(tmp_path), "train") == {f"images/{number}.jpg": str(number % 2) for number in range(6)}


def test_a_small_val_may_have_one_image_per_class(tmp_path):
    make = filled(tmp_path, "train", count=6)
    make.images("val", 3)
    for folder, count, column in (("train", 6, "what"), ("val", 3, "what")):
        table(
            make,
            f"{folder}/t.csv",
            f"file,{column}",
            *(f"{index:03d}.jpg,{'abc'[index % 3]}" for index in range(count)),
        )
    assert {split: len(items) for split, items in read_folder(tmp_path).splits.items()} == {"train": 6, "val": 3}


def test_arrow_files_are_refused_with_what_to_do(tmp_path):
    Maker(tmp_path).file("train/data-00000-of-00001.arrow")
    with pytest.raises(DataError, match=r"found 1\s+arrow file, such as train/data-0.*; write them as parquet"):
        read_folder(tmp_path)


def test_a_table_per_split_makes_splits(tmp_path):
    make = filled(tmp_path, "images", count=8)
    table(make, "train.csv", "file,label", *(f"{index:03d}.jpg,{'ab'[index % 2]}" for index in range(4)))
    table(make, "val_labels.csv", "file,label", *(f"{index:03d}.jpg,{'ab'[index % 2]}" for index in range(4, 8)))
    assert {split: len(items) for split, items in read_folder(tmp_path).splits.items()} == {"train": 4, "val": 4}


def test_what_a_table_lacks_or_has_too_much_is_told(tmp_path):
    make = filled(tmp_path, "images", count=6)
    table(make, "t.csv", "file,label", "000.jpg,a", "001.jpg,a", "002.jpg,b", "003.jpg,b", "004.jpg,", "gone.jpg,a")
    dataset = read_folder(tmp_path)
    missed = {one.path: one.reason for one in dataset.left_out if not one.is_expected}
    assert missed == {"images/004.jpg": "without a class in t.csv", "images/005.jpg": "not in t.csv"}
    assert dataset.notes == ("t.csv names 1\N{NO-BREAK SPACE}file without an image here: gone.jpg",)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,age,sex", "000.jpg,3,f", "001.jpg,4,m"], r"t\.csv: expected one column of classes, found age, sex;"),
        (["file,text", "000.jpg,one", "001.jpg,two", "002.jpg,three"], r"found 3\s+different values in as many rows"),
        (["file,label", "000.jpg,a", "000.jpg,b"], r"images/000\.jpg: expected one class per image, found 'a' and 'b'"),
        (["file,label,class", "000.jpg,a,x", "001.jpg,a,y"], r"expected one column of classes, found label, class;"),
    ],
)
def test_a_table_of_several_meanings_is_refused(tmp_path, lines, message):
    table(filled(tmp_path, "images", count=4), "t.csv", *lines)
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path)


def test_folders_that_are_no_classes_by_the_table_are_refused(tmp_path):
    make = filled(tmp_path, "part_1", "part_2")
    table(make, "t.csv", "file,dx", *(f"part_{p}/00{i}.jpg,{'ab'[i]}" for p in (1, 2) for i in (0, 1)))
    with pytest.raises(DataError, match=r"by folder \(part_1, part_2, …\) or by a table, found that t\.csv differs"):
        read_folder(tmp_path)


def test_a_table_that_agrees_with_the_folders_is_no_matter(tmp_path):
    make = filled(tmp_path, "cat", "dog")
    table(make, "t.csv", "file,label", *(f"{name}/00{i}.jpg,{name.upper()}" for name in ("cat", "dog") for i in (0, 1)))
    assert read_folder(tmp_path).classes == ("cat", "dog")


def test_a_stray_table_beside_folders_of_classes_is_no_matter(tmp_path):
    make = filled(tmp_path, "train/cat", "train/dog")
    table(make, "noisy.csv", "path,label", "train/cat/000.jpg,dog", "train/dog/000.jpg,cat")
    assert labels_of(read_folder(tmp_path), "train")["train/cat/000.jpg"] == "cat"
