"""A file that is replaced is the old one or the new one, whatever fails on the way."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest
import torch

from raysnap import atomic
from raysnap.atomic import create_zeros, plain_disk_errors, replacing, write_atomically


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


class FullFile(io.BytesIO):
    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_under_torch_is_said_in_plain_words():
    with pytest.raises(OSError, match="No space left on device"), plain_disk_errors():
        torch.save({"x": torch.zeros(3)}, FullFile())
    with pytest.raises(RuntimeError, match="mine"), plain_disk_errors():
        raise RuntimeError("mine")


def test_a_file_of_zeros_has_all_its_pages_and_is_never_replaced(tmp_path):
    path = tmp_path / "zeros"
    create_zeros(path, 10_000)
    assert path.read_bytes() == bytes(10_000)
    assert path.stat().st_blocks * 512 >= 10_000
    path.write_bytes(b"x" * 10_000)
    create_zeros(path, 10_000)
    assert path.read_bytes() == b"x" * 10_000
    create_zeros(path, 5)
    assert path.read_bytes() == bytes(5)


def test_of_two_that_create_zeros_at_once_one_wins(tmp_path, monkeypatch):
    path = tmp_path / "zeros"
    link = os.link

    def beaten(source: Path, target: Path) -> None:
        path.write_bytes(b"the other")
        link(source, target)

    monkeypatch.setattr(os, "link", beaten)
    create_zeros(path, 9)
    assert path.read_bytes() == b"the other"
    assert list(tmp_path.iterdir()) == [path]


def test_zeros_are_made_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def unsupported(*paths: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", unsupported)
    create_zeros(tmp_path / "zeros", 9)
    assert (tmp_path / "zeros").read_bytes() == bytes(9)
