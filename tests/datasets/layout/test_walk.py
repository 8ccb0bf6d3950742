"""Every file below a folder has its place: an image, or left out with a reason; links are followed, loops are named."""

import os

import pytest

from raysnap.datasets.layout import walk as walking
from raysnap.datasets.layout.walk import walk
from raysnap.errors import DataError
from tests.support.found_folders import Maker


def left_out(root) -> dict[str, str]:
    """Return why each file below a folder is left out."""
    return {one.path: one.reason for one in walk(root)[1]}


@pytest.mark.parametrize("place", ["train/cat/more", "train/fox", "val"])
def test_a_linked_folder_is_read_at_every_level(tmp_path, place):
    make = Maker(tmp_path / "pets")
    make.images("train/cat", 2)
    Maker(tmp_path / "elsewhere").images("", 3)
    link = tmp_path / "pets" / place
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "elsewhere")
    folder, others = walk(tmp_path / "pets")
    assert folder.num_images == 5 and not others
    assert f"{place}/001.jpg" in folder.image_paths()


@pytest.mark.parametrize("target", [".", "..", "../..", "../cat"])
def test_a_link_back_is_named_and_ends(tmp_path, target):
    Maker(tmp_path).images("train/cat", 2)
    (tmp_path / "train" / "cat" / "loop").symlink_to(target)
    assert walk(tmp_path)[0].num_images == 2
    assert left_out(tmp_path) == {"train/cat/loop": "a link to a folder that contains it"}


def test_links_that_multiply_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(walking, "MAX_FOLDERS_BY_LINKS", 100)
    for depth in range(9):
        (tmp_path / f"{depth}").mkdir()
        for name in ("a", "b"):
            (tmp_path / f"{depth}" / name).symlink_to(tmp_path / f"{depth + 1}")
    Maker(tmp_path).images("9", 1)
    with pytest.raises(DataError, match="found links that lead to more than 100 folders"):
        walk(tmp_path)


def test_a_folder_that_is_no_dataset_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(walking, "MAX_FOLDERS_BEFORE_AN_IMAGE", 20)
    for number in range(30):
        (tmp_path / f"{number}").mkdir()
    with pytest.raises(DataError, match="found no image in 20 folders; pass the dataset's folder"):
        walk(tmp_path)


def test_odd_files_are_named(tmp_path):
    make = Maker(tmp_path)
    for name in ("a.HEIC", "b.tga", "c.mp4", "d", "e.txt", ".hidden.jpg"):
        make.file(f"cat/{name}")
    os.mkfifo(tmp_path / "cat" / "f.jpg")
    (tmp_path / "cat" / "g.jpg").symlink_to("g.jpg")
    assert left_out(tmp_path) == {
        "cat/.hidden.jpg": "a hidden or system file",
        "cat/a.HEIC": "HEIC, which needs `pip install pillow-heif`, or conversion to JPEG",
        "cat/b.tga": "TGA images are not read; convert them to PNG",
        "cat/c.mp4": "no image by its name (.mp4)",
        "cat/d": "no image by its name (no suffix)",
        "cat/e.txt": "no image (.txt)",
        "cat/f.jpg": "a pipe, socket or device",
        "cat/g.jpg": "a link that leads nowhere",
    }


def test_a_system_folder_counts_all_its_files(tmp_path):
    make = Maker(tmp_path)
    for name in ("@eaDir/a.jpg/x.jpg", "@eaDir/b", "__MACOSX/._a", "$RECYCLE.BIN/a.jpg", "lost+found/a.jpg"):
        make.file(name)
    (tmp_path / ".raysnap").mkdir()
    (tmp_path / ".raysnap" / "pixels.bin").touch()
    folder, others = walk(tmp_path)
    assert folder.num_images == 0 and folder.folders == ()
    assert {one.path: one.num_files for one in others} == {
        "@eaDir": 2, "__MACOSX": 1, "$RECYCLE.BIN": 1, "lost+found": 1,
    }  # fmt: skip
    assert all(one.is_expected for one in others)


def test_a_deep_folder_is_left_out_and_counted(tmp_path):
    deep = "/".join(["d"] * 60)
    Maker(tmp_path).images(f"cat/{deep}", 2)
    folder, others = walk(tmp_path)
    assert folder.num_images == 0
    assert [(one.num_files, one.reason) for one in others] == [(2, "more than 48 folders deep")]
