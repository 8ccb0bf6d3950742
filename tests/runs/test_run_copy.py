"""A run kept in a bucket: what was recorded is there for another machine, and two drivers don't both go on with it."""

import pytest

from raysnap.config.folders import BucketAddress
from raysnap.config.jobs import GenerateConfig
from raysnap.errors import ConfigError, RunLocked
from raysnap.runs.json_fields import read_rows
from raysnap.runs.run_copy import RunCopy
from raysnap.runs.run_directory import RunDirectory, lock_run
from raysnap.training.savepoints import latest_savepoint, write_record
from tests.support.places import in_memory
from tests.support.s3_server import BUCKET, environment, s3_server


@pytest.fixture
def new_copy():
    bucket = in_memory()
    return lambda: RunCopy(BucketAddress("s3://memory/run"), bucket.open())


def record(copy: RunCopy, folder, *trials: str) -> RunDirectory:
    folder.mkdir(exist_ok=True)
    run = RunDirectory(folder, copy=copy)
    run.write_trials([])
    for trial in trials:
        run.add_row({"trial": trial})
    return run


def checkpoint(folder, epoch: int):
    path = folder / f"checkpoint_{epoch:06}"
    (path / "best").mkdir(parents=True)
    (path / "best" / "head.safetensors").write_bytes(bytes(1000 + epoch))
    write_record(path, status="running", epoch=epoch)
    return path


def test_rows_and_documents_come_to_another_machine(new_copy, tmp_path):
    record(new_copy(), tmp_path / "here", "a", "b")
    new_copy().fetch(tmp_path / "there")
    assert [row["trial"] for row in read_rows(tmp_path / "there/results.jsonl")] == ["a", "b"]
    assert (tmp_path / "there/trials.jsonl").exists()


def test_a_row_that_only_the_bucket_has_is_not_lost(new_copy, tmp_path):
    run = record(new_copy(), tmp_path / "here", "a")
    run.copy.add_row('{"trial": "b"}')  # and the driver died before it wrote it here
    new_copy().fetch(tmp_path / "here")
    record(new_copy(), tmp_path / "here", "c")
    assert [row["trial"] for row in read_rows(tmp_path / "here/results.jsonl")] == ["a", "b", "c"]
    new_copy().fetch(tmp_path / "there")
    assert (tmp_path / "there/results.jsonl").read_bytes() == (tmp_path / "here/results.jsonl").read_bytes()


def test_rows_that_the_bucket_lacks_are_not_written_over(new_copy, tmp_path):
    record(new_copy(), tmp_path / "here", "a")
    RunDirectory(tmp_path / "here").add_row({"trial": "of another run"})
    with pytest.raises(ConfigError, match="has 1 rows that s3://memory/run lacks"):
        new_copy().fetch(tmp_path / "here")
    assert len(read_rows(tmp_path / "here/results.jsonl")) == 2


def test_of_two_drivers_the_one_that_comes_late_ends(new_copy, tmp_path):
    first, second = (record(new_copy(), tmp_path / name, "a") for name in ("one",) * 2)
    second.add_row({"trial": "b"})
    with pytest.raises(RunLocked, match="another driver continues this run: it wrote rows/00000002.json"):
        first.add_row({"trial": "b"})
    new_copy().fetch(tmp_path / "read")
    assert [row["trial"] for row in read_rows(tmp_path / "read/results.jsonl")] == ["a", "a", "b"]


def test_the_latest_checkpoint_comes_to_another_machine(new_copy, tmp_path):
    run = record(new_copy(), tmp_path / "here")
    for epoch in (1, 2):
        run.keep_checkpoint("trials", "a", checkpoint(tmp_path / "here/ray/trials/a", epoch))
    run.close()
    new_copy().fetch(tmp_path / "there")
    found = latest_savepoint(tmp_path / "there/ray/trials/a")
    assert found is not None and found.record["epoch"] == 2
    assert (found.path / "best/head.safetensors").stat().st_size == 1002


def test_a_trial_that_ended_keeps_no_checkpoint(new_copy, tmp_path):
    run = record(new_copy(), tmp_path / "here")
    run.keep_checkpoint("trials", "a", checkpoint(tmp_path / "here/ray/trials/a", 1))
    run.keep_checkpoint("trials", "a", None)
    run.keep_checkpoint("trials", "b", tmp_path / "here/ray/trials/b/gone meanwhile")
    run.close()
    new_copy().fetch(tmp_path / "there")
    assert not (tmp_path / "there/ray").exists()


def test_a_key_that_leads_elsewhere_is_not_fetched(new_copy, tmp_path):
    copy = new_copy()
    for key in ("a/.hidden", "a/..b", ".writer-1"):
        copy._place.client.put(key, b"x")
    copy.fetch(tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_a_run_that_is_in_the_bucket_goes_on_only_with_resume(tmp_path, monkeypatch):
    with s3_server() as address:
        for name, value in environment(address).items():
            monkeypatch.setenv(name, value)
        job = {"datasets": ["shapes-shape-a"], "storage_path": f"s3://{BUCKET}/run"}
        here, there = (GenerateConfig(run_dir=tmp_path / name, **job) for name in ("here", "there"))
        with lock_run(here, here.run_dir, resume=False) as lock:
            RunDirectory.open(here, lock, resume=False).add_row({"trial": "a"})
        with (
            pytest.raises(ConfigError, match=r"already holds a run; add --resume"),
            lock_run(there, there.run_dir, resume=False),
        ):
            pass
        assert not there.run_dir.exists()
        with lock_run(there, there.run_dir, resume=True) as lock:
            run = RunDirectory.open(there, lock, resume=True)
            assert [row["trial"] for row in run.rows()] == ["a"]
        other = there.model_copy(update={"seed": 7, "run_dir": tmp_path / "other"})
        with pytest.raises(ConfigError, match="seed"), lock_run(other, other.run_dir, resume=True):
            pass
