"""A population of fine-tuned snapshots: sample the trials, run them on Ray, collect what they leave into the store.

Everything is checked before the first write; every trial that ends is a row at once, so that a driver that dies loses
only what was still running, and `resume` runs only what no row calls done.
"""

from __future__ import annotations

import time

from raysnap.config.jobs import GenerateConfig
from raysnap.jobs.job import Job, last_rows
from raysnap.jobs.summary import JobSummary
from raysnap.planning.generate import TrialsPlan, plan_generate
from raysnap.progress import OnProgress
from raysnap.runs.run_directory import RunDirectory, check_run_dir
from raysnap.store.store import Store


def generate(config: GenerateConfig, *, resume: bool = False, on_progress: OnProgress) -> JobSummary:
    """Runs a generate job on the Ray that is up.

    Raises:
        RaysnapError: the job can't be started; trials that fail are rows, not errors.
        KeyboardInterrupt: Tune was stopped before every trial had ended.
    """
    plan = plan_generate(config)
    check_run_dir(config, config.run_dir, resume=resume)
    store = Store.open(config.store, create=True)
    run = RunDirectory.open(config, config.run_dir, resume=resume)
    job = Job(config, plan, store, run, on_progress)
    run.write_trials([*plan.bases, *plan.trials])
    run.write_env(config.seed, job.started, None, {})
    with job.stage("data"):
        job.prepare_data()
    with job.stage("base"):
        bases = job.make_bases()
    with job.stage("trials"):
        job.run(plan.trials, bases, "trials", config.resources)
    run.write_env(config.seed, job.started, time.perf_counter() - job.started_s, job.stages_s)
    return _summarise(run, plan)


def _summarise(run: RunDirectory, plan: TrialsPlan) -> JobSummary:
    planned = {trial.id for trial in [*plan.bases, *plan.trials] if trial.dataset}
    rows = [row for row in last_rows(run) if row["trial"] in planned]
    failures = [{"trial": row["trial"], "error": row["error"]} for row in rows if row["status"] != "done"]
    return JobSummary(
        run_dir=str(run.path),
        num_trials=len(planned),
        num_done=len(rows) - len(failures),
        num_failed=len(failures),
        snapshots=[row["snapshot"] for row in rows if row["snapshot"]],
        failures=failures,
    )
