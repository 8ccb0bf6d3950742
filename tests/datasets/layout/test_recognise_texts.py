"""Folders of texts are read as what they are, or refused with the line that helps; counts add up."""

from pathlib import Path

import pytest

from raysnap.datasets.dataset import open_dataset, read_folder
from raysnap.errors import DataError
from tests.support.image_folders import make_folder
from tests.support.official_sources import imdb, write_folder


def texts(root: Path, *places: str) -> Path:
    for place in places:
        for number in range(2):
            path = root / place / f"{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{place} {number}")
    return root


def test_a_folder_of_texts_is_read_as_texts(tmp_path):
    dataset = read_folder(texts(tmp_path, "train/a", "train/b", "dev/a", "dev/b"))
    assert (dataset.kind, dataset.classes) == ("texts", ("a", "b"))
    assert {split: len(items) for split, items in dataset.splits.items()} == {"train": 4, "val": 4}


def test_classes_without_splits_are_for_training(tmp_path):
    dataset = read_folder(texts(tmp_path, "ham", "spam"))
    assert (dataset.kind, len(dataset.splits["train"])) == ("texts", 4)


def test_imdb_is_read_without_what_has_no_label(tmp_path):
    files = imdb()
    dataset = read_folder(write_folder(tmp_path, files))
    account = dataset.account()
    assert dataset.classes == ("neg", "pos")
    assert account.num_images == {"train": 6, "test": 6}
    assert sum(account.num_images.values()) + account.num_left_out == len(files)
    lines = "\n".join(account.lines()).replace("\u00a0", " ")
    assert "5 files left out, texts without a label: aclImdb/train/unsup" in lines
    assert "12 texts read" in lines


def test_images_with_texts_beside_them_are_images(tmp_path):
    root = make_folder(tmp_path / "both", {"train/a": 2, "train/b": 2})
    texts(root, "train/a", "train/b")
    assert read_folder(root).kind == "images"


def test_images_that_cannot_be_read_make_no_texts(tmp_path):
    texts(tmp_path, "train/a", "train/b")
    (tmp_path / "train/a/photo.tga").touch()
    with pytest.raises(DataError, match=r"expected .*found"):
        read_folder(tmp_path)


@pytest.mark.parametrize("name", ["reviews.csv", "train.jsonl"])
def test_a_table_alone_is_refused_with_the_command(tmp_path, name):
    (tmp_path / name).write_text("text,label\n")
    with pytest.raises(
        DataError, match=rf"found 1\stable, such as {name}; if it holds texts.*`raysnap data prepare NAME"
    ):
        read_folder(tmp_path)


def test_a_table_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "reviews.csv").write_text("text,label\n")
    with pytest.raises(DataError, match=r"found a file; `raysnap data prepare NAME --source .*reviews\.csv`"):
        open_dataset(str(tmp_path / "reviews.csv"), tmp_path)


def test_a_class_with_one_text_is_refused(tmp_path):
    texts(tmp_path, "train/a", "train/b")
    (tmp_path / "train/b/0.txt").unlink()
    with pytest.raises(DataError, match=r"train/b: expected at least 2 texts, found 1 text; add some \(\.txt\)"):
        read_folder(tmp_path)
