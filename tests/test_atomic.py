"""A file that is replaced is the old one or the new one, whatever fails on the way."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from raysnap import atomic
from raysnap.atomic import replacing, write_atomically


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("call", ["fsync", "open", "replace"])
def test_a_failed_replacement_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "env.json"
    write_atomically(path, "old")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(*((os, call) if call == "fsync" else (Path, call)), fail)
    with pytest.raises(OSError, match="Input/output"):
        write_atomically(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["env.json"]


def test_an_error_in_the_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), replacing(path) as file:
        file.writelines([b"new", None])
    assert path.read_bytes() == b"old"
    assert listing(tmp_path) == ["model.pth"]


def test_readers_see_the_old_file_until_the_block_ends(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_two_writers_at_once_do_not_mix(tmp_path):
    path = tmp_path / "model.pth"
    with replacing(path) as first, replacing(path) as second:
        first.write(b"first")
        second.write(b"second")
    assert path.read_bytes() == b"first"  # its block ended last
    assert listing(tmp_path) == ["model.pth"]


def test_file_and_folder_are_synced_around_the_rename(tmp_path, monkeypatch):
    path, steps, replace = tmp_path / "env.json", [], Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: steps.append("file"))
    monkeypatch.setattr(atomic, "sync_dir", lambda folder: steps.append(folder))
    monkeypatch.setattr(Path, "replace", lambda *paths: steps.append("rename") or replace(*paths))
    write_atomically(path, "text")
    assert steps == ["file", "rename", tmp_path]
