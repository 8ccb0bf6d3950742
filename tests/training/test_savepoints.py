"""Checkpoints on disk: one that is not whole does not exist, the latest epoch is the newest, the rest is swept."""

from pathlib import Path

import pytest

from raysnap.training.savepoints import delete_checkpoints, keep_latest, latest_savepoint, read_savepoint, write_record


def make(directory: Path, epoch: int = 1, status: str = "training", content: bytes = b"weights") -> Path:
    (directory / "best").mkdir(parents=True)
    (directory / "best" / "fc.safetensors").write_bytes(content)
    (directory / "state.pt").write_bytes(b"state")
    write_record(directory, status=status, epoch=epoch, trial="one")
    return directory


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_sealed_checkpoint_is_found_with_its_record(tmp_path):
    found = read_savepoint(make(tmp_path / "checkpoint_000000", epoch=3))
    assert (found.record["trial"], found.record["epoch"], found.is_final) == ("one", 3, False)
    assert read_savepoint(make(tmp_path / "other", status="done")).is_final


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["best/fc.safetensors", "state.pt", "trial.json"])
@pytest.mark.parametrize("harm", [Path.unlink, cut, flip, lambda path: path.write_bytes(b"")])
def test_a_checkpoint_that_lacks_a_byte_does_not_exist(tmp_path, name, harm):
    directory = make(tmp_path / "one" / "checkpoint_000000")
    harm(directory / name)
    assert read_savepoint(directory) is None
    assert latest_savepoint(tmp_path / "one") is None


def test_each_file_counts_whatever_order_they_are_copied_in(tmp_path):
    whole = make(tmp_path / "whole")
    paths = [path for path in sorted(whole.rglob("*")) if path.is_file()]
    for missing in paths:
        copy = tmp_path / "copy" / missing.name
        for path in paths:
            if path != missing:
                target = copy / path.relative_to(whole)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        assert read_savepoint(copy) is None


def test_the_latest_is_the_last_epoch_or_a_finished_one(tmp_path):
    make(tmp_path / "checkpoint_000004", epoch=5)
    make(tmp_path / "checkpoint_000000", epoch=6)
    make(tmp_path / "workers" / "checkpoint_2026-01-01", epoch=7)
    cut(make(tmp_path / "checkpoint_000005", epoch=8) / "state.pt")
    assert latest_savepoint(tmp_path).record["epoch"] == 7
    make(tmp_path / "checkpoint_000001", epoch=3, status="done")
    assert latest_savepoint(tmp_path).is_final


def test_only_the_latest_is_kept_away_from_the_next_run(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    make(tmp_path / "checkpoint_000000", epoch=1, content=b"one")
    make(tmp_path / "checkpoint_000001", epoch=2, content=b"two")
    for _ in range(2):
        kept = keep_latest(tmp_path)
        assert kept.record["epoch"] == 2
        assert (kept.path / "best" / "fc.safetensors").read_bytes() == b"two"
        assert names(tmp_path) == ["result.json", kept.path.name]
    make(tmp_path / "checkpoint_000000", epoch=3, content=b"three")
    assert keep_latest(tmp_path).record["epoch"] == 3
    assert read_savepoint(kept.path).record["epoch"] == 3
    delete_checkpoints(tmp_path)
    assert names(tmp_path) == ["result.json"]


def test_a_trial_without_checkpoints_has_no_savepoint(tmp_path):
    assert latest_savepoint(tmp_path / "none") is None
    assert keep_latest(tmp_path / "none") is None
    delete_checkpoints(tmp_path / "none")
    cut(make(tmp_path / "one" / "checkpoint_000000") / "state.pt")
    assert keep_latest(tmp_path / "one") is None
    assert names(tmp_path / "one") == []


def test_a_record_holds_no_number_that_json_lacks(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_record(tmp_path, status="done", epoch=1, metrics={"val_loss": float("nan")})
    assert read_savepoint(tmp_path) is None
