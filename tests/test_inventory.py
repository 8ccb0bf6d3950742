"""What datasets there are, and the full look at one."""

import shutil

import pytest
from PIL import Image

from raysnap.config import ShapesConfig
from raysnap.data import NAMED_DATASETS, open_dataset
from raysnap.errors import DataError
from raysnap.inventory import check_dataset, list_datasets
from raysnap.shapes import TASKS

TINY = ShapesConfig(image_size=16, num_train=8, num_val=4, num_test=4)


def test_every_known_name_is_listed_and_nothing_is_made(tmp_path):
    summaries = list_datasets(tmp_path / "nowhere")
    assert [summary.name for summary in summaries] == [*TASKS, *sorted(NAMED_DATASETS)]
    assert all(summary.path is None and summary.note for summary in summaries)
    assert not (tmp_path / "nowhere").exists()


def test_what_is_there_is_listed_with_its_counts_or_its_fault(tmp_path):
    open_dataset("shapes-shape-a", tmp_path, TINY)
    shutil.copytree(tmp_path / "shapes-shape-a", tmp_path / "mine")
    (tmp_path / "broken").mkdir()
    by_name = {summary.name: summary for summary in list_datasets(tmp_path)}
    assert by_name["mine"].counts == by_name["shapes-shape-a"].counts == {"train": 8, "val": 4, "test": 4}
    assert by_name["mine"].num_classes == 4
    assert "found no folders" in by_name["broken"].fault


def test_a_data_dir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "data").touch()
    with pytest.raises(DataError, match="expected a folder, found a file"):
        list_datasets(tmp_path / "data")


def test_a_sound_dataset_is_counted(tmp_path):
    open_dataset("shapes-shape-a", tmp_path, TINY)
    result = check_dataset("shapes-shape-a", tmp_path)
    assert result.is_sound
    assert result.counts["train"] == dict.fromkeys(result.classes, 2)
    assert result.counts["val"] == dict.fromkeys(result.classes, 1)
    assert result.num_ignored == 0


def test_bad_images_strays_and_leaks_between_splits_are_named(tmp_path):
    dataset = open_dataset("shapes-shape-a", tmp_path, TINY)
    train, val = dataset.splits["train"], dataset.splits["val"]
    train[0].path.write_bytes(b"")
    (train[0].path.parent / "notes.txt").touch()
    shutil.copy(train[3].path, val[1].path)
    twin = train[5].path.with_name("twin.jpg")
    shutil.copy(train[5].path, twin)
    result = check_dataset(str(dataset.root), tmp_path)
    assert not result.is_sound
    assert [path for path, _ in result.bad] == [train[0].path]
    assert "an empty file" in result.bad[0][1]
    assert result.num_ignored == 1
    assert result.duplicates == ((train[3].path, val[1].path),)


def test_equal_images_of_two_classes_are_named(tmp_path):
    for class_name in ("a", "b"):
        (tmp_path / "it" / "train" / class_name).mkdir(parents=True)
        for index in range(2):
            value = index if class_name == "a" else index * 9
            Image.new("L", (4, 4), value).save(tmp_path / "it" / "train" / class_name / f"{index}.png")
    (group,) = check_dataset(str(tmp_path / "it"), tmp_path).duplicates
    assert [path.parent.name for path in group] == ["a", "b"]
