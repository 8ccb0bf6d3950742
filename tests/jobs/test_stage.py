"""A stage of a job without Ray: what need not run is recorded at once, and what can't be collected is a failed row."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from raysnap.config.choices import Role, Status
from raysnap.config.jobs import GenerateConfig
from raysnap.config.parts import ResourcesConfig
from raysnap.config.train import TrainConfig
from raysnap.jobs import stage
from raysnap.jobs.data import JobData
from raysnap.jobs.job import Job
from raysnap.jobs.memory import Memory
from raysnap.jobs.stage import Stage, record_outcome, run_stage
from raysnap.planning.generate import TrialsPlan
from raysnap.planning.gpu_memory import TrainingItems, peak_bytes
from raysnap.store.preprocessing import Preprocessing
from raysnap.training.savepoints import read_savepoint, write_record
from raysnap.training.trial import Trial
from raysnap.tune.options import MeasuredTrial, TrialOutcome

TRIAL = Trial(
    id="001-a",
    role=Role.FINETUNE,
    architecture="resnet18",
    dataset="shapes-shape-a",
    retrain_index=0,
    seed=1,
    train=TrainConfig(epochs=1),
)


@pytest.fixture
def job(tmp_path) -> Iterator[Job]:
    places = {"run_dir": tmp_path / "run", "store": tmp_path / "store", "data_dir": tmp_path / "data"}
    config = GenerateConfig.model_validate(places | {"datasets": ["shapes-shape-a"], "num_snapshots": 1})
    plan = TrialsPlan(Preprocessing.cropping(32), [], {}, [TRIAL], {})
    with Job.open(config, plan, resume=False, on_progress=lambda *progress: None) as opened:
        yield opened


@pytest.fixture
def dataset() -> SimpleNamespace:
    return SimpleNamespace(classes=("circle", "square"), root=Path("data"))


def memory_of(job: Job) -> Memory:
    return Memory(job, JobData({}, {}), {})


def checkpoint(directory: Path, trial_id: str):
    directory.mkdir(parents=True)
    (directory / "weights").write_bytes(b"weights")
    write_record(directory, status="done", epoch=1, trial=trial_id)
    return read_savepoint(directory)


def run(job: Job, bases: dict[str, str | None]) -> None:
    run_stage(job, JobData({}, {}), Stage("trials", [TRIAL], bases, ResourcesConfig()))


def test_a_trial_whose_base_failed_fails_without_running(job):
    run(job, {})
    [row] = job.run_dir.trial_rows()
    assert (row.trial, row.status, row.error) == ("001-a", Status.FAILED, "its base resnet18 failed")


def test_a_final_row_is_not_run_again_and_its_checkpoints_go(job):
    job.run_dir.add_row({"trial": "001-a", "status": "done"})
    left = job.config.run_dir / "ray" / "trials" / "001-a" / "checkpoint"
    checkpoint(left, "001-a")
    run(job, {"resnet18": None})
    assert len(job.run_dir.rows()) == 1
    assert not left.exists()


def test_a_savepoint_that_can_not_be_collected_is_a_failed_row(job, tmp_path):
    savepoint = checkpoint(tmp_path / "checkpoint", "another")
    row = record_outcome(memory_of(job), TrialOutcome(TRIAL, savepoint, Status.DONE, None), tmp_path)
    assert row.status == Status.FAILED
    assert row.error.endswith("expected a checkpoint of 001-a, found another's")
    assert [written.as_json() for written in job.run_dir.trial_rows()] == [row.as_json()]


def test_the_checkpoints_of_a_failed_trial_stay_for_a_retry(job, tmp_path):
    savepoint = checkpoint(tmp_path / "001-a" / "checkpoint", "another")
    record_outcome(memory_of(job), TrialOutcome(TRIAL, savepoint, Status.DONE, None), tmp_path)
    assert savepoint.path.exists()


@pytest.mark.parametrize("packs", [True, False])
def test_a_resumed_stage_hands_measured_rows_on(job, monkeypatch, packs):
    handed = []
    monkeypatch.setattr(stage, "run_trials", lambda *_, options, **__: handed.append(options.measured))
    monkeypatch.setattr(stage, "gpus_per_worker", lambda _: 1.0)
    measured, old, next_one = (TRIAL.model_copy(update={"id": name}) for name in ("measured", "old", "next"))
    peak = {"status": "done", "gpu_share": 1.0, "gpu_peak_bytes": 20}
    job.run_dir.add_row(peak | {"trial": "old"})
    job.run_dir.add_row(peak | {"trial": "of another job", "gpu_bytes": 100})
    outcome = TrialOutcome(measured, None, Status.DONE, None, gpu_share=1.0, gpu_peak_bytes=20, gpu_bytes=100)
    record_outcome(memory_of(job), outcome, job.config.run_dir)
    resources = ResourcesConfig(pack_gpus=packs)
    data = JobData({}, {"shapes-shape-a": {"train": 8, "val": 8}})
    with pytest.raises(KeyboardInterrupt):  # as nothing runs here
        run_stage(job, data, Stage("trials", [measured, old, next_one], {"resnet18": None}, resources))
    assert handed == [[MeasuredTrial(measured, 20, 100)] if packs else []]


def test_the_row_of_a_trial_on_a_gpu_says_its_forecast(job, monkeypatch, dataset):
    def end_one(trials, *_, on_end, **__):
        on_end(TrialOutcome(trials[0], None, Status.FAILED, "an error", gpu_share=0.5))

    monkeypatch.setattr(stage, "run_trials", end_one)
    items = {"train": 8, "val": 8}
    data = JobData({"shapes-shape-a": dataset}, {"shapes-shape-a": items})
    run_stage(job, data, Stage("trials", [TRIAL], {"resnet18": None}, ResourcesConfig(gpus=1)))
    [row] = job.run_dir.trial_rows()
    num_classes = len(dataset.classes)
    assert row.gpu_forecast_bytes == peak_bytes(TRIAL, job.config.image_size, TrainingItems(num_classes, items))


def test_progress_counts_the_trials_that_had_ended_before(job):
    shown = []
    job = Job(job.config, job.plan, job.store, job.run_dir, lambda *progress: shown.append(progress))
    job.run_dir.add_row({"trial": "001-a", "status": "stopped", "stopped": "scheduler"})
    run(job, {"resnet18": None})
    assert shown == [("trials", 1, 1, "")]
