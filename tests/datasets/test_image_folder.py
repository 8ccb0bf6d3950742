"""Folders of images appear whole or not at all, and no class name leaves its folder."""

import os
import time

import pytest

from raysnap.datasets.image_folder import class_slug, new_folder
from raysnap.errors import DataError


def test_classes_that_would_share_a_folder_are_refused(tmp_path):
    with new_folder(tmp_path / "it", {}) as folder:
        folder.add_image("train", "a/b", "0.png", b"")
        with pytest.raises(DataError, match="'a_b': expected a unique folder name, found that 'a/b'"):
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
