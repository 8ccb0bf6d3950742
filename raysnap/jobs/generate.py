"""A population of fine-tuned snapshots: plan the trials, run them on Ray, collect their results into the store.

Everything is checked before the first write. Every trial that ends is a row at once, so a driver that dies loses only
what was still running, and `resume` runs only trials without a final row.
"""

from __future__ import annotations

from raysnap.config.jobs import GenerateConfig
from raysnap.datasets.layout.account import Account
from raysnap.jobs.bases import make_bases
from raysnap.jobs.data import prepare_data
from raysnap.jobs.job import Job
from raysnap.jobs.stage import Stage, run_stage
from raysnap.jobs.summary import JobSummary, failures_of, renamed_in
from raysnap.planning.generate import TrialsPlan, plan_generate
from raysnap.progress import OnProgress, ignore_progress
from raysnap.runs.run_lock import RunLock


def generate(
    config: GenerateConfig,
    *,
    plan: TrialsPlan | None = None,
    resume: bool = False,
    lock: RunLock | None = None,
    on_progress: OnProgress = ignore_progress,
) -> JobSummary:
    """Run a generate job on the Ray that is up.

    >>> job = raysnap.GenerateConfig(
    ...     architectures=["mobilenet_v3_small"], datasets=["shapes-shape-a"], num_snapshots=1, image_size=32,
    ...     shapes={"image_size": 36, "num_train": 16, "num_val": 8, "num_test": 8}, train={"epochs": 1},
    ...     store="generated", run_dir="runs/generated",
    ... )
    >>> summary = raysnap.generate(job)
    >>> summary.num_done, len(summary.snapshots)
    (1, 1)

    Args:
        plan: what `plan_generate(config)` returned; planned here where it is None.
        lock: what holds the run directory for the caller; taken here where it is None.

    Raises:
        RaysnapError: the job can't be started; trials that fail are rows, not errors.
        KeyboardInterrupt: Tune was stopped before every trial had ended.
    """
    plan = plan or plan_generate(config)
    with Job.open(config, plan, resume=resume, on_progress=on_progress, lock=lock) as job:
        job.run_dir.write_trials([*plan.bases, *plan.trials])
        job.write_env(is_over=False)
        with job.clock.stage("data"):
            data = prepare_data(job)
        job.write_env(is_over=False, data=data.accounts)
        with job.clock.stage("base"):
            bases = make_bases(job, data)
        with job.clock.stage("trials"):
            run_stage(job, data, Stage("trials", plan.trials, bases, config.resources))
        job.write_env(is_over=True, data=data.accounts)
        return _summarise(job, data.accounts)


def _summarise(job: Job, data: tuple[Account, ...]) -> JobSummary:
    planned = {trial.id for trial in [*job.plan.bases, *job.plan.trials] if trial.dataset}
    rows = [row for row in job.run_dir.trial_rows() if row.trial in planned]
    failures = failures_of(rows)
    return JobSummary(
        run_dir=str(job.run_dir.path),
        num_trials=len(planned),
        num_done=len(rows) - len(failures),
        num_failed=len(failures),
        snapshots=[row.snapshot for row in rows if row.snapshot],
        failures=failures,
        renamed=renamed_in(rows),
        data=data,
    )
