"""What a node that sees other folders answers, and what is left of asking; real nodes are in tests/faults."""

import fcntl
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from raysnap.cluster import places
from raysnap.cluster.places import (
    COPY,
    LOCK,
    MOUNT,
    JobFolder,
    _Fault,
    _look,
    _Probe,
    _probe,
    check_mark,
    marked,
    naming_node,
    sample,
)
from raysnap.errors import ClusterError, ConfigError
from raysnap.store.store import Store


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(places, "APPEAR_S", 0.0)
    monkeypatch.setattr(places, "this_node", lambda: "node worker-7 (10.0.0.7)")


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def ask(probe: _Probe, folder: Path) -> _Fault | str | None:
    """Return what a node answers to which the place is another folder."""
    [found] = _look([replace(probe, folder=folder)], "7")
    return found


def make_images(root: Path) -> Path:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(12):
                (root / split / name / f"{number}.png").write_bytes(b"x" * 100)
    (root / ".raysnap").mkdir()
    (root / ".raysnap" / "cache").touch()
    return root


@pytest.mark.parametrize("use", ["shared", "locked"])
def test_a_node_that_sees_the_folder_answers(tmp_path, use):
    with _probe(JobFolder("run_dir", tmp_path / "a" / "b", use)) as probe:
        name = ask(probe, probe.folder)
        assert (probe.folder / name).read_text() == name
    folders = ["a", "a/b"] if use == "shared" else ["a", "a/b", "a/b/tmp"]
    assert listing(tmp_path) == folders


def test_a_store_is_probed_where_it_keeps_unfinished_files(tmp_path):
    with _probe(JobFolder("store", tmp_path, "locked")) as probe:
        assert probe.folder == tmp_path / "tmp"


@pytest.mark.parametrize("use", ["shared", "locked"])
@pytest.mark.parametrize(("folder", "found"), [("other", "sees another folder there"), ("none", "has no such folder")])
def test_a_node_that_sees_another_folder_says_so(tmp_path, use, folder, found):
    (tmp_path / "other").mkdir()
    with _probe(JobFolder("run_dir", tmp_path / "here", use)) as probe:
        assert ask(probe, tmp_path / folder) == _Fault(found, MOUNT)
    assert listing(tmp_path / "other") == []


def test_an_old_copy_of_a_probe_is_not_taken_for_it(tmp_path):
    (tmp_path / "other").mkdir()
    with _probe(JobFolder("run_dir", tmp_path / "here", "shared")) as probe:
        (tmp_path / "other" / probe.name).write_text("0" * 64)
        assert ask(probe, tmp_path / "other") == _Fault("sees another folder there", MOUNT)


def test_locks_that_do_not_reach_a_node_are_noticed(tmp_path):
    (tmp_path / "other").mkdir()
    with _probe(JobFolder("store", tmp_path / "here", "locked")) as probe:
        shutil.copy(probe.folder / probe.name, tmp_path / "other")
        assert ask(probe, tmp_path / "other") == _Fault("can lock a file there that this machine has locked", LOCK)


def test_a_node_that_can_not_lock_or_rename_says_why(tmp_path, monkeypatch):
    def refuse(*arguments) -> None:
        raise OSError(37, "No locks available")

    with _probe(JobFolder("store", tmp_path, "locked")) as probe:
        monkeypatch.setattr(fcntl, "flock", refuse)
        assert ask(probe, probe.folder) == _Fault("can't lock files there: No locks available", LOCK)
        monkeypatch.setattr(Path, "rename", refuse)
        assert ask(probe, probe.folder) == _Fault("can't write and rename files there: No locks available", LOCK)
        monkeypatch.undo()
    assert listing(tmp_path) == ["tmp"]


def test_a_refused_place_is_left_as_it_was(tmp_path):
    with pytest.raises(ZeroDivisionError), _probe(JobFolder("store", tmp_path / "a" / "store", "locked")):
        raise ZeroDivisionError
    assert listing(tmp_path) == []
    (tmp_path / "file").touch()
    message = "store .*file: can't be written or locked: Not a directory; give a folder that all nodes mount"
    with pytest.raises(ConfigError, match=message), _probe(JobFolder("store", tmp_path / "file", "locked")):
        pass


def test_copies_of_a_dataset_are_as_good_as_a_mount(tmp_path):
    with _probe(JobFolder("dataset 'a'", make_images(tmp_path / "a"), "read")) as probe:
        assert ask(probe, make_images(tmp_path / "b")) is None
        assert ask(probe, tmp_path / "c") == _Fault("has no such folder", COPY)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda root: shutil.rmtree(root / "train" / "dog"), "has another one: train/ has 1 folders, not 2"),
        (lambda root: shutil.rmtree(root / "val"), "has another one: ./ has 1 folders, not 2"),
        (lambda root: (root / "train" / "new").mkdir(), "has another one: train/ has 3 folders, not 2"),
        (lambda root: [path.write_bytes(b"y") for path in root.glob("val/cat/*")], "val/cat/"),
        (lambda root: [path.unlink() for path in root.glob("val/dog/*")], "No such file or directory"),
    ],
)
def test_a_dataset_that_differs_is_another(tmp_path, change, found):
    with _probe(JobFolder("dataset 'a'", make_images(tmp_path / "a"), "read")) as probe:
        change(make_images(tmp_path / "b"))
        fault = ask(probe, tmp_path / "b")
        assert found in fault.found
        assert fault.advice == COPY


def test_a_sample_is_small_and_leaves_out_what_changes(tmp_path):
    make_images(tmp_path / "a")
    found = sample(tmp_path / "a")
    assert sum(not name.endswith(os.sep) for name in found) == 4 * places.MAX_FILES
    assert not any(".raysnap" in name for name in found)
    for number in range(2 * places.MAX_FOLDERS):
        (tmp_path / "b" / "train" / f"{number:03d}").mkdir(parents=True)
    assert len(sample(tmp_path / "b")) == 2 + places.MAX_FOLDERS


def test_what_is_missing_on_a_node_is_told_with_its_name(tmp_path):
    with (
        pytest.raises(ClusterError, match=r"node worker-7 \(10\.0\.0\.7\): .*none: expected a model store"),
        naming_node(),
    ):
        Store.open(tmp_path / "none")


def test_a_mark_is_seen_while_its_driver_runs(tmp_path):
    with marked(tmp_path / "run" / "ray") as old:
        check_mark(old, None)
        check_mark(old, tmp_path)
        message = r"dataset .*/none: node worker-7 \(10\.0\.0\.7\) has no such folder; mount or copy it"
        with pytest.raises(ClusterError, match=message):
            check_mark(old, tmp_path / "none")
        with marked(tmp_path / "run" / "ray") as new:  # the driver of a resumed run
            check_mark(new, None)
            message = rf"run_dir {tmp_path}/run: node worker-7 \(10\.0\.0\.7\) doesn't see what the driver writes there"
            with pytest.raises(ClusterError, match=message):
                check_mark(old, None)
    assert listing(tmp_path) == ["run", "run/ray"]
