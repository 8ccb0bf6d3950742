"""What records trials as they run: TensorBoard event files, MLflow, Weights & Biases; no Ray in it.

Every tracker gets the same: a trial's hyperparameters when it starts, its figures by epoch, and those of the kept epoch
when it ends. Figures are named as dashboards group them: `train/loss`, `val/accuracy`, `kept/…`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from raysnap.runs.json_fields import numbers

PROJECT = "raysnap"
_IDENTITY = ("architecture", "dataset", "retrain_index", "base", "seed")

Figures = Mapping[str, float]


class Tracker(Protocol):
    """Keeps records of trials by their ids."""

    def start(self, trial: str, hyperparameters: Mapping[str, Any]) -> None:
        """Start the record of a trial, or continue it after its process died."""

    def measure(self, trial: str, epoch: int, figures: Figures) -> None:
        """Record the figures of an epoch that ended."""

    def end(self, trial: str, epoch: int, kept: Figures, *, has_failed: bool) -> None:
        """End the record of a trial; `kept` are the figures of the epoch whose weights are kept."""


def make_trackers(names: Sequence[str], run_dir: Path) -> list[Tracker]:
    """Return the trackers of these names; what they write locally goes to `run_dir`."""
    makers: dict[str, Callable[[Path], Tracker]] = {"mlflow": MlflowRuns, "wandb": WandbRuns}
    return [makers[name](run_dir.resolve()) for name in names]


def hyperparameters(trial: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """Return what a planned trial is trained with, as a flat dict; values that are not plain are JSON text."""
    found = {key: trial[key] for key in _IDENTITY if key in trial}
    found |= {f"train.{key}": value for key, value in trial.get("train", {}).items()}
    found |= {key: value for key, value in (trial.get("point") or {}).items() if not key.startswith("train.")}
    return {key: value if isinstance(value, (str, int, float)) else json.dumps(value) for key, value in found.items()}


def figures_of(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of an epoch among what Tune reports of it."""
    named = {"lr": "train/lr", "epoch_s": "time/epoch_s"}
    named |= {key: key.replace("_", "/", 1) for key in result if re.match(r"(train|val|test)_", key)}
    return numbers({named[key]: value for key, value in result.items() if key in named})


def kept_of(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of the kept epoch; empty before a trial has ended well."""
    found = numbers(result.get("kept"))
    return {f"kept/{key}": value for key, value in found.items() if key != "best_epoch"}


class EventFiles:
    """TensorBoard event files in the trials' folders: scalars by epoch, and one session of the HParams tab each.

    No experiment summary is written: without one, TensorBoard makes the tab's columns from all sessions together, so
    that hyperparameters of only some trials are columns too.
    """

    def __init__(self, root: Path):
        self._root = root
        self._writers: dict[str, Any] = {}

    def start(self, trial: str, hyperparameters: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        from tensorboardX import SummaryWriter
        from tensorboardX.summary import hparams

        if trial in self._writers:
            return
        folder = self._root / trial
        suffix = f".{len(list(folder.glob('events.out.tfevents.*')))}"  # otherwise names differ only by the second
        writer = self._writers[trial] = SummaryWriter(str(folder), flush_secs=10, filename_suffix=suffix)
        _, started, _ = hparams(dict(hyperparameters), {})
        writer.file_writer.add_summary(started)

    def measure(self, trial: str, epoch: int, figures: Figures) -> None:
        """See `Tracker`."""
        for name, value in figures.items():
            self._writers[trial].add_scalar(name, value, global_step=epoch)

    def end(self, trial: str, epoch: int, kept: Figures, *, has_failed: bool) -> None:
        """See `Tracker`."""
        self.measure(trial, epoch, kept)
        writer = self._writers.pop(trial)
        writer.file_writer.add_summary(_session_end(has_failed))
        writer.close()


def _session_end(has_failed: bool) -> Any:
    """Return the summary that shows in the HParams tab how a session ended."""
    from tensorboardX.proto.api_pb2 import Status
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData, SessionEndInfo
    from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata

    status = Status.Value("STATUS_FAILURE" if has_failed else "STATUS_SUCCESS")
    content = HParamsPluginData(session_end_info=SessionEndInfo(status=status), version=0)
    plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=content.SerializeToString())
    metadata = SummaryMetadata(plugin_data=plugin)
    return Summary(value=[Summary.Value(tag="_hparams_/session_end_info", metadata=metadata)])


class MlflowRuns:
    """One MLflow run per trial: at MLFLOW_TRACKING_URI, else in `mlflow.db` of the run directory."""

    def __init__(self, run_dir: Path):
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        run_dir.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run_dir / 'mlflow.db'}")
        self._group = run_dir.name
        self._runs: dict[str, str] = {}

    def start(self, trial: str, hyperparameters: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        from mlflow.entities import Param

        if trial in self._runs:
            return
        experiment = self._client.get_experiment_by_name(PROJECT)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(PROJECT)
        run = self._client.create_run(experiment_id, run_name=trial, tags={"raysnap.run": self._group})
        self._runs[trial] = run.info.run_id
        params = [Param(key, str(value)) for key, value in hyperparameters.items()]
        self._client.log_batch(run.info.run_id, params=params)

    def measure(self, trial: str, epoch: int, figures: Figures) -> None:
        """See `Tracker`."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [Metric(name, value, now_ms, epoch) for name, value in figures.items()]
        self._client.log_batch(self._runs[trial], metrics=metrics)

    def end(self, trial: str, epoch: int, kept: Figures, *, has_failed: bool) -> None:
        """See `Tracker`."""
        self.measure(trial, epoch, kept)
        self._client.set_terminated(self._runs.pop(trial), "FAILED" if has_failed else "FINISHED")


class WandbRuns:
    """One W&B run per trial, grouped by the run directory, whose `wandb` folder holds the files of offline runs."""

    def __init__(self, run_dir: Path):
        self._run_dir = run_dir
        self._runs: dict[str, Any] = {}

    def start(self, trial: str, hyperparameters: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        import wandb

        if trial in self._runs:
            return
        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._runs[trial] = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            group=self._run_dir.name,
            name=trial,
            dir=str(self._run_dir),
            config=dict(hyperparameters),
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )

    def measure(self, trial: str, epoch: int, figures: Figures) -> None:
        """See `Tracker`."""
        self._runs[trial].log(dict(figures), step=epoch)

    def end(self, trial: str, epoch: int, kept: Figures, *, has_failed: bool) -> None:
        """See `Tracker`."""
        run = self._runs.pop(trial)
        run.summary.update(dict(kept) | ({"kept/epoch": epoch} if kept else {}))
        run.finish(exit_code=int(has_failed))
