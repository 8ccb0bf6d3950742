"""A run's folder: rows that survive a crash, and a job that is resumed only as the job it was."""

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysnap.config.jobs import GenerateConfig
from raysnap.config.load import load_config
from raysnap.config.parts import RetrainConfig
from raysnap.errors import ConfigError
from raysnap.planning.sampling import sample_trials
from raysnap.runs import run_directory as runs
from raysnap.runs.json_fields import read_rows
from raysnap.runs.run_directory import RunDirectory, check_run_dir, lock_run

CONFIG = GenerateConfig(datasets=("pets", "1e-3", "no"), seed=3, train={"lr": 1e-5})


def begin(path: Path, config: GenerateConfig = CONFIG, *, resume: bool = False) -> RunDirectory:
    with lock_run(config, path, resume=resume) as lock:
        RunDirectory.open(config, lock, resume=resume)
    return RunDirectory(path)


def listing(folder: Path) -> list[str]:
    """Every path below the folder, but the record of who wrote there last."""
    found = (path.relative_to(folder) for path in folder.rglob("*"))
    return sorted(str(path) for path in found if not path.name.startswith(".writer-"))


def test_a_new_run_holds_the_configuration_that_reruns_it(tmp_path):
    run = begin(tmp_path / "deep" / "run")
    assert listing(run.path) == ["config.yaml"]
    assert load_config(run.path / "config.yaml", [], GenerateConfig) == CONFIG
    assert run.rows() == []


def test_an_empty_folder_becomes_a_run_and_other_files_stay(tmp_path):
    (tmp_path / "log.txt").write_text("mine")
    begin(tmp_path)
    assert listing(tmp_path) == ["config.yaml", "log.txt"]


def test_a_begun_run_is_only_entered_to_resume_it(tmp_path):
    begin(tmp_path).add_row({"trial": "a"})
    with pytest.raises(ConfigError, match="already holds a run; add --resume to finish it, or choose another run_dir="):
        begin(tmp_path)
    assert begin(tmp_path, resume=True).rows() == [{"trial": "a"}]


def test_resuming_what_was_never_begun_begins_it(tmp_path):
    begin(tmp_path / "run", resume=True)
    assert listing(tmp_path / "run") == ["config.yaml"]


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"seed": 4}, r"seed: the run was started with 3, found 4"),
        ({"datasets": ("pets",)}, r"datasets: the run was started with \['pets', '1e-3', 'no'\], found \['pets'\]"),
        ({"num_snapshots": 9}, r"num_snapshots: the run was started with 8, found 9"),
        ({"store": Path("elsewhere")}, r"store: the run was started with 'store', found 'elsewhere'"),
        ({"train": CONFIG.train.model_copy(update={"epochs": 1})}, r"train: the run was started with .*'epochs': 5"),
    ],
)
def test_a_changed_configuration_is_refused_naming_its_key(tmp_path, update, message):
    begin(tmp_path)
    with pytest.raises(ConfigError, match=message):
        begin(tmp_path, CONFIG.model_copy(update=update), resume=True)


def test_a_run_from_before_a_key_was_added_goes_on(tmp_path):
    begin(tmp_path)
    lines = (tmp_path / "config.yaml").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(("  stem:", "num_test:"))]
    assert len(kept) == len(lines) - 2
    (tmp_path / "config.yaml").write_text("".join(kept))
    begin(tmp_path, resume=True)
    with pytest.raises(ConfigError, match="retrain: the run was started with .*'stem': False"):
        begin(tmp_path, CONFIG.model_copy(update={"retrain": RetrainConfig(stem=True)}), resume=True)


def test_a_run_may_go_on_with_other_resources(tmp_path):
    begin(tmp_path)
    resources = CONFIG.resources.model_copy(update={"max_concurrent": 1})
    begin(tmp_path, CONFIG.model_copy(update={"resources": resources}), resume=True)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.jsonl", "{}\n", r"holds rows but no config\.yaml"),
        ("config.yaml", "a: [", r"not valid YAML|already holds a run"),
        ("config.yaml", "", r"found nothing|already holds a run"),
        ("config.yaml", "kind: bench", r"started with|already holds a run"),
    ],
)
def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path, name, content, message, resume):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        begin(tmp_path, resume=resume)
    assert listing(tmp_path) == [name]
    assert (tmp_path / name).read_text() == content


@pytest.mark.parametrize("place", ["file", "file/run", "file/deep/run"])
def test_a_file_where_a_folder_should_be_is_refused(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"run_dir .*: expected a folder, found the file .*file; choose another"):
        check_run_dir(CONFIG, tmp_path / place, resume=False)
    with pytest.raises(ConfigError, match="expected a folder"):
        begin(tmp_path / place)


def test_a_folder_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(runs.os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(ConfigError, match="can't be written; choose another run_dir="):
        check_run_dir(CONFIG, tmp_path / "run", resume=False)


def test_looking_writes_nothing(tmp_path):
    check_run_dir(CONFIG, tmp_path / "run", resume=False)
    assert listing(tmp_path) == []


def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch):
    def fail(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs, "write_atomically", fail)
    with pytest.raises(ConfigError, match="can't be written: No space left on device; choose another run_dir="):
        begin(tmp_path / "run")


# Rows

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
rows = st.dictionaries(st.text(), plain | st.lists(plain), max_size=4)


@settings(max_examples=40)
@given(written=st.lists(rows, max_size=5))
def test_rows_come_back_in_order(tmp_path_factory, written):
    run = RunDirectory(tmp_path_factory.mktemp("rows"))
    for row in written:
        run.add_row(row)
    assert run.rows() == written


def test_a_row_torn_anywhere_is_dropped_and_the_next_is_whole(tmp_path):
    run = begin(tmp_path)
    run.add_row({"trial": "a", "text": "é\n…"})
    path = tmp_path / "results.jsonl"
    whole = path.read_bytes()
    for num_bytes in range(len(whole) - 1):
        path.write_bytes(whole + whole[:num_bytes])
        assert [row["trial"] for row in run.rows()] == ["a"]
        run.add_row({"trial": "b"})
        assert [row["trial"] for row in run.rows()] == ["a", "b"]


def test_a_row_without_a_line_end_counts_and_stays_apart(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"trial": "a"}')
    run = RunDirectory(tmp_path)
    run.add_row({"trial": "b"})
    assert [row["trial"] for row in run.rows()] == ["a", "b"]


def test_lines_that_are_no_rows_are_passed_over(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"a": 1}\n\n[1]\n3\n\xff\xfe\n{"a": \n' + b"\0" * 50 + b'\n{"a": 2}\n')
    assert read_rows(path) == [{"a": 1}, {"a": 2}]
    assert read_rows(tmp_path / "missing.jsonl") == []


def test_a_row_written_in_parts_is_written_whole(tmp_path, monkeypatch):
    run, write = RunDirectory(tmp_path), os.write
    monkeypatch.setattr(runs.os, "write", lambda file, data: write(file, data[:3]))
    run.add_row({"trial": "a"})
    assert run.rows() == [{"trial": "a"}]


def test_nan_in_a_row_is_refused_before_anything_is_written(tmp_path):
    run = RunDirectory(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.add_row({"loss": float("nan")})
    assert listing(tmp_path) == []


def test_scalars_of_numpy_and_torch_are_numbers(tmp_path):
    import numpy as np
    import torch

    run = RunDirectory(tmp_path)
    run.add_row({"a": np.float32(0.5), "b": torch.tensor(2)})
    assert run.rows() == [{"a": 0.5, "b": 2}]


# Trials and the environment


def test_trials_are_a_json_line_each(tmp_path):
    run, trials = RunDirectory(tmp_path), sample_trials(CONFIG)
    run.write_trials(trials)
    assert [row["id"] for row in read_rows(tmp_path / "trials.jsonl")] == [trial.id for trial in trials]


def test_a_further_trial_is_a_line_of_its_own(tmp_path):
    run, trials = begin(tmp_path / "run"), sample_trials(CONFIG)
    run.write_trials(trials[:1])
    with (run.path / "trials.jsonl").open("a") as file:
        file.write('{"id": "torn')
    run.add_trial(trials[1])
    assert [row["id"] for row in read_rows(run.path / "trials.jsonl")] == [trial.id for trial in trials[:2]]


def test_the_environment_has_what_results_depend_on(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hunter2")
    run = RunDirectory(tmp_path)
    run.write_env(7, "2026-01-01T00:00:00Z", None, {})
    begun = json.loads((tmp_path / "env.json").read_text())
    run.write_env(7, "2026-01-01T00:00:00Z", 1.5, {"data": 0.5})
    text = (tmp_path / "env.json").read_text()
    ended = json.loads(text)
    assert (begun["seed"], begun["finished"], begun["wall_s"]) == (7, None, None)
    assert (ended["wall_s"], ended["stages_s"]) == (1.5, {"data": 0.5})
    assert ended["finished"] >= ended["started"]
    assert {"raysnap", "torch", "torchvision", "ray", "python", "platform", "cpu", "num_cpus", "gpus", "commit"} <= {
        *ended
    }
    assert "hunter2" not in text
    assert str(Path.home()) not in text
