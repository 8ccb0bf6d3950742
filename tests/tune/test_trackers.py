"""Trackers record trials in full: TensorBoard's own reader, MLflow and W&B read back what was written."""

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from raysnap.errors import ConfigError
from raysnap.planning.extras import check_trackers
from raysnap.tune.tracker_callback import TrackerCallback
from raysnap.tune.trackers import EventFiles, figures_of, hyperparameters, kept_of
from tests.support import ROOT
from tests.support.event_files import scalars

PLANNED = {
    "id": "001-resnet18-pets-r2",
    "role": "finetune",
    "architecture": "resnet18",
    "dataset": "pets",
    "retrain_index": 2,
    "seed": 7,
    "train": {"lr": 0.01, "optimizer": "sgd", "views": None, "layer_lrs": [0.1, 0.01], "compile": False},
    "point": {"train.lr": 0.01, "base": "pretrained"},
}
KEPT = {"best_epoch": 2, "val_accuracy": 0.8, "test_accuracy": 0.75, "val_loss": 0.4}


class Told:
    """A Tune trial as callbacks see it."""

    def __init__(self, name: str, **train):
        self.name = name
        self.config = {"trial": PLANNED | {"id": name, "train": PLANNED["train"] | train}}
        self.last_result: dict = {}

    def __str__(self) -> str:
        return self.name


def epoch(number: int, **more) -> dict:
    clock = {"time_total_s": 9.5, "training_iteration": 1, "done": False, "pid": 12, "config": {}}
    own = {"epoch": number, "train_loss": 1.0 / number, "val_accuracy": 0.9 - 0.1 * abs(number - 2), "lr": 0.01}
    return clock | own | {"val_loss": 0.5, "epoch_s": 1.5} | more


def run_trial(
    tracking: TrackerCallback, trial: Told, num_epochs: int = 3, first: int = 1, end: dict | None = None
) -> None:
    tracking.on_trial_start(0, [], trial)
    for number in range(first, num_epochs + 1):
        is_last = number == num_epochs
        trial.last_result = epoch(number, **({"status": "done", "kept": KEPT} if is_last and end is None else {}))
        tracking.on_trial_result(0, [], trial, trial.last_result)
    if end is not None:
        trial.last_result = end
        tracking.on_trial_result(0, [], trial, end)
    tracking.on_trial_complete(0, [], trial)


def hparams_experiment(root: Path):
    """Return what the HParams tab of TensorBoard shows of the runs in a folder."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(root))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(root))
    context = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    asked = RequestContext()
    metadata = context.hparams_metadata(asked, "")
    experiment = context.experiment_from_metadata(asked, "", True, metadata, [])
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=100,
        allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_RUNNING],
        col_params=[api_pb2.ColParams(metric=one.name) for one in experiment.metric_infos],
    )
    groups = list_session_groups.Handler(asked, context, "", request).run()
    return experiment, groups


def test_scalars_are_by_epoch_without_the_clock(tmp_path):
    run_trial(TrackerCallback([EventFiles(tmp_path)]), Told("a"))
    found = scalars(tmp_path / "a")
    assert found == {
        "train/loss": [(1, 1.0), (2, 0.5), (3, 0.333333)],
        "val/accuracy": [(1, 0.8), (2, 0.9), (3, 0.8)],
        "val/loss": [(1, 0.5), (2, 0.5), (3, 0.5)],
        "train/lr": [(1, 0.01), (2, 0.01), (3, 0.01)],
        "time/epoch_s": [(1, 1.5), (2, 1.5), (3, 1.5)],
        "kept/val_accuracy": [(2, 0.8)],
        "kept/test_accuracy": [(2, 0.75)],
        "kept/val_loss": [(2, 0.4)],
    }


def test_a_trial_that_another_driver_goes_on_with_has_one_curve(tmp_path):
    begun = TrackerCallback([EventFiles(tmp_path)])
    trial = Told("a")
    begun.on_trial_start(0, [], trial)
    begun.on_trial_start(0, [], trial)  # its process died and was begun again
    for number in (1, 2):
        begun.on_trial_result(0, [], trial, epoch(number))
    begun._trackers[0]._writers["a"].close()
    run_trial(TrackerCallback([EventFiles(tmp_path)]), Told("a"), num_epochs=4, first=3)
    assert [step for step, _ in scalars(tmp_path / "a")["val/accuracy"]] == [1, 2, 3, 4]


def test_the_hparams_tab_lists_every_trial(tmp_path):
    tracking = TrackerCallback([EventFiles(tmp_path)])
    run_trial(tracking, Told("a"))
    run_trial(tracking, Told("b", lr=0.1, momentum=0.9))
    run_trial(tracking, Told("c"), num_epochs=1, end={"status": "diverged", "error": "the loss became NaN"})
    experiment, groups = hparams_experiment(tmp_path)
    columns = {one.name for one in experiment.hparam_infos}
    assert {"architecture", "dataset", "retrain_index", "seed", "base", "train.lr", "train.momentum"} <= columns
    assert not {"id", "role", "trial.id"} & columns
    assert {"kept/test_accuracy", "kept/val_accuracy"} <= {one.name.tag for one in experiment.metric_infos}
    sessions = [session for group in groups.session_groups for session in group.sessions]
    assert sorted(session.name for session in sessions) == ["a", "b", "c"]
    assert [one.status for one in sorted(sessions, key=lambda one: one.name)] == [1, 1, 2]  # success, success, failure
    rates = {group.sessions[0].name: group.hparams["train.lr"].number_value for group in groups.session_groups}
    assert rates == {"a": 0.01, "b": 0.1, "c": 0.01}
    kept_by_trial = {
        group.sessions[0].name: {one.name.tag: one.value for one in group.metric_values}
        for group in groups.session_groups
    }
    assert kept_by_trial["a"]["kept/test_accuracy"] == 0.75
    assert "kept/test_accuracy" not in kept_by_trial["c"]


def test_hyperparameters_are_flat_and_plain():
    assert hyperparameters(PLANNED) == {
        "architecture": "resnet18",
        "dataset": "pets",
        "retrain_index": 2,
        "seed": 7,
        "train.lr": 0.01,
        "train.optimizer": "sgd",
        "train.views": "null",
        "train.layer_lrs": "[0.1, 0.01]",
        "train.compile": False,
        "base": "pretrained",
    }


def test_figures_are_the_trials_own_and_finite():
    result = epoch(1, val_top5_accuracy=0.99, train_loss=float("nan"), trial_id="x", kept={"val_loss": None})
    assert figures_of(result) == {
        "val/accuracy": 0.8,
        "val/loss": 0.5,
        "val/top5_accuracy": 0.99,
        "train/lr": 0.01,
        "time/epoch_s": 1.5,
    }
    assert kept_of(result) == {}


def test_a_tracker_that_fails_is_dropped_and_the_others_are_told(tmp_path, caplog):
    calls = []

    def fail(*arguments, **named):
        calls.append(arguments)
        raise ConnectionError("no route to the server")

    broken = SimpleNamespace(start=lambda *arguments: None, measure=fail, end=fail)
    with caplog.at_level(logging.WARNING):
        run_trial(TrackerCallback([broken, EventFiles(tmp_path)]), Told("a"))
    assert len(calls) == 1
    assert "failed and gets no further records: " in caplog.text
    assert "no route to the server" in caplog.text
    assert len(scalars(tmp_path / "a")["val/accuracy"]) == 3


def test_a_trial_that_ends_before_it_starts_is_not_tracked(tmp_path):
    tracking = TrackerCallback([EventFiles(tmp_path)])
    tracking.on_trial_error(0, [], Told("dead"))
    run_trial(tracking, Told("a"))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert len(tracking._trackers) == 1


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_tracker_is_one_line_that_names_its_extra(monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=rf"trackers: {name}: .*pip install 'raysnap\[{name}\]'") as caught:
        check_trackers([name])
    assert "\n" not in str(caught.value)


TELL = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from raysnap.tune.trackers import make_trackers
from raysnap.tune.tracker_callback import TrackerCallback
tracking = TrackerCallback(make_trackers([{name!r}], Path({run_dir!r})))
run_trial(tracking, Told("a"))
run_trial(tracking, Told("b"), num_epochs=1, end={{"status": "failed", "error": "it went wrong"}})
assert tracking._trackers
"""


def tell(name: str, run_dir: Path, **environment: str) -> None:
    """Tells a tracker of two trials, in a process of its own, whose libraries' warnings are their own."""
    code = TELL.format(tests=str(ROOT), name=name, run_dir=str(run_dir))
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "WANDB"))}
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=150, check=False, env=kept | environment
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == ""


def test_mlflow_keeps_params_curves_and_ends(tmp_path):
    for package in ("mlflow", "sqlalchemy", "alembic"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'raysnap[mlflow]'")
    tell("mlflow", tmp_path / "run")
    import sqlite3

    with sqlite3.connect(tmp_path / "run" / "mlflow.db") as database:
        runs = dict(database.execute("SELECT name, status FROM runs"))
        curve = database.execute(
            "SELECT step, value FROM metrics JOIN runs USING (run_uuid) WHERE key = 'val/accuracy' AND name = 'a' "
            "ORDER BY step"
        ).fetchall()
        params = dict(database.execute("SELECT key, value FROM params JOIN runs USING (run_uuid) WHERE name = 'a'"))
    database.close()
    assert runs == {"a": "FINISHED", "b": "FAILED"}
    assert curve == [(1, pytest.approx(0.8)), (2, pytest.approx(0.9)), (3, pytest.approx(0.8))]
    assert params["train.lr"] == "0.01"


def test_wandb_leaves_offline_runs_in_the_run_directory(tmp_path):
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("wandb is not installed: pip install 'raysnap[wandb]'")
    tell("wandb", tmp_path / "run", WANDB_MODE="offline")
    files = list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    written = b"".join(file.read_bytes() for file in files)
    assert b"kept/test_accuracy" in written
    assert b"train.lr" in written
