"""Datasets on disk: what opens, and what is refused and how."""

import pytest

from raysnap.config.parts import ShapesConfig
from raysnap.datasets import dataset
from raysnap.datasets.dataset import find_dataset, open_dataset, read_folder
from raysnap.datasets.shapes import draw_task
from raysnap.errors import DataError
from tests.support.image_folders import make_folder, num_per_class

TINY = ShapesConfig(image_size=16, num_train=8, num_val=4, num_test=4)


def test_a_path_opens_wherever_a_name_does(tmp_path):
    root = make_folder(tmp_path / "data" / "pets", {"train/cat": 3, "train/dog": 2, "test/dog": 1})
    by_name, by_path = open_dataset("pets", tmp_path / "data"), open_dataset(str(root), tmp_path / "elsewhere")
    assert by_name == by_path
    assert by_name.name == "pets"
    assert by_name.classes == ("cat", "dog")
    assert list(by_name.splits) == ["train", "test"]
    assert [(item.path.name, item.label) for item in by_name.splits["train"]] == [
        ("000.png", 0), ("001.png", 0), ("002.png", 0), ("000.png", 1), ("001.png", 1),
    ]  # fmt: skip


def test_files_that_are_no_images_are_left_out_and_counted(tmp_path):
    root = make_folder(tmp_path / "pets", {"train/cat": 2, "train/dog": 2})
    (root / "train" / "notes.txt").touch()
    (root / ".DS_Store").touch()
    (root / "train" / "__MACOSX").mkdir()
    (root / "train" / ".cache").mkdir()
    for name in (".DS_Store", "._000.png", "labels.csv"):
        (root / "train" / "cat" / name).touch()
    (root / "train" / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "train" / "cat" / "loop.png").symlink_to("loop.png")
    found = read_folder(root)
    assert found.classes == ("cat", "dog")
    assert len(found.splits["train"]) == 4
    missed = {one.path: one.reason for one in found.left_out if not one.is_expected}
    assert missed == dict.fromkeys(("train/cat/gone.png", "train/cat/loop.png"), "a link that leads nowhere")
    assert sum(one.num_files for one in found.left_out) == 7


def test_images_in_folders_below_a_class_belong_to_it(tmp_path):
    root = make_folder(tmp_path / "pets", {"train/cat": 2, "train/dog": 1, "train/dog/poodle": 2})
    assert num_per_class(read_folder(root).splits["train"]) == {0: 2, 1: 3}


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, r"train/ with a folder of images per class, found no folders"),
        ({"cat": 2}, r"found only cat; the layout is \{train,val,test\}/<class>/<image>"),
        ({"test/cat": 2}, r"found only test"),
        ({"train": 0}, r"at least 2, found none"),
        ({"train": 3}, r"at least 2, found none"),
        ({"train/cat": 3}, r"at least 2, found 1"),
        ({"train/cat": 3, "train/dog": 1}, r"train/dog: expected at least 2 images, found 1 image; add some"),
        ({"train/cat": 3, "train/dog": 0}, r"train/dog: expected at least 2 images, found no images"),
        (
            {"train/cat": 2, "train/dog": 2, "val/cat": 0},
            r"val: expected images, found none; fill the folder or remove",
        ),
    ],
)
def test_a_folder_nothing_can_train_on_is_refused_in_one_line(tmp_path, counts, message):
    (tmp_path / "pets").mkdir()
    make_folder(tmp_path / "pets", counts)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset("pets", tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "pets") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shapes-color-a", "did you mean 'shapes-colour-a'"),
        ("pet", "did you mean 'pets'"),
        ("zzzzzz", "raysnap data ls"),
        ("./pets-elsewhere", "found no folder"),
        ("", "found an empty string"),
        ("x" * 5000, "File name too long"),
        ("fashion-mnist", "raysnap data prepare fashion-mnist --source PATH"),
        ("a-file", "expected a folder with train/<class>/<image>, found a file"),
        ("../data/a-file", "found a file"),
    ],
)
def test_an_unknown_name_is_refused_with_what_to_do(tmp_path, monkeypatch, name, message):
    data_dir = tmp_path / "data"
    make_folder(data_dir / "pets", {"train/cat": 2, "train/dog": 2})
    (data_dir / "a-file").touch()
    monkeypatch.chdir(data_dir)
    with pytest.raises(DataError, match=message):
        open_dataset(name, data_dir)
    assert sorted(path.name for path in data_dir.iterdir()) == ["a-file", "pets"]


def test_a_data_dir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "data").touch()
    with pytest.raises(DataError, match="data_dir .*: expected a folder, found a file"):
        open_dataset("shapes-shape-a", tmp_path / "data")


def test_a_broken_record_is_named(tmp_path):
    root = make_folder(tmp_path / "pets", {"train/cat": 2, "train/dog": 2})
    (root / "dataset.json").write_text("[1")
    with pytest.raises(DataError, match=r"dataset\.json: expected a JSON object"):
        read_folder(root)


def test_a_shapes_task_is_drawn_on_first_use_and_only_then(tmp_path):
    drawn = open_dataset("shapes-texture-a", tmp_path, TINY)
    times = {item.path: item.path.stat().st_mtime_ns for items in drawn.splits.values() for item in items}
    assert {split: len(items) for split, items in drawn.splits.items()} == {"train": 8, "val": 4, "test": 4}
    again = open_dataset("shapes-texture-a", tmp_path, TINY)
    assert again == drawn == open_dataset("shapes-texture-a", tmp_path)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert [path.name for path in tmp_path.iterdir()] == ["shapes-texture-a"]


def test_drawings_of_a_task_share_a_data_dir(tmp_path):
    other = TINY.model_copy(update={"num_train": 9})
    first, second = (open_dataset("shapes-texture-a", tmp_path, shapes) for shapes in (TINY, other))
    assert [len(each.splits["train"]) for each in (first, second)] == [8, 9]
    assert first.name == second.name == "shapes-texture-a" and first.digest != second.digest
    assert first.root == tmp_path / "shapes-texture-a" == find_dataset("shapes-texture-a", tmp_path)
    assert open_dataset("shapes-texture-a", tmp_path, other) == second == read_folder(second.root)
    assert find_dataset("shapes-texture-a", tmp_path, TINY.model_copy(update={"seed": 5})) is None


def test_a_drawing_that_another_process_makes_first_stays(tmp_path, monkeypatch):
    other = TINY.model_copy(update={"num_train": 9})

    def draw_after_another(name, root, shapes):
        monkeypatch.setattr(dataset, "draw_task", draw_task)
        draw_task(name, root, other)
        draw_task(name, root, shapes)

    monkeypatch.setattr(dataset, "draw_task", draw_after_another)
    assert len(open_dataset("shapes-texture-a", tmp_path, TINY).splits["train"]) == 8
    assert len(open_dataset("shapes-texture-a", tmp_path).splits["train"]) == 9


def test_splits_of_zero_images_do_not_exist(tmp_path):
    config = TINY.model_copy(update={"num_val": 0, "num_test": 0})
    assert list(open_dataset("shapes-texture-a", tmp_path, config).splits) == ["train"]


def test_a_link_to_a_dataset_keeps_the_name_it_is_called_by(tmp_path):
    make_folder(tmp_path / "v2", {"train/cat": 2, "train/dog": 2})
    (tmp_path / "pets").symlink_to(tmp_path / "v2")
    assert open_dataset("pets", tmp_path).name == "pets"


def test_a_dangling_link_is_no_dataset(tmp_path):
    (tmp_path / "pets").symlink_to(tmp_path / "v2")
    with pytest.raises(DataError, match="found neither"):
        open_dataset("pets", tmp_path)
