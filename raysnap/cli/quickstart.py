"""The quickstart: a base trained on built-in data, a population fine-tuned from it, timed searches, a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raysnap.bench.run_bench import BenchSummary, bench
from raysnap.config.quickstart import QuickstartConfig
from raysnap.jobs.generate import generate
from raysnap.jobs.summary import JobSummary
from raysnap.planning.generate import TrialsPlan
from raysnap.progress import OnProgress
from raysnap.report.page import write_report
from raysnap.runs.run_lock import RunLock


@dataclass(frozen=True)
class QuickstartSummary:
    """The results of a quickstart; `best` is the snapshot that the last method of the configuration ranked first."""

    store: str
    run_dir: str
    report: str
    num_snapshots: int
    num_failed: int
    searches: list[dict[str, Any]]
    best: dict[str, Any] | None
    generated: JobSummary
    benched: BenchSummary


def quickstart(
    config: QuickstartConfig,
    *,
    plan: TrialsPlan | None = None,
    resume: bool,
    lock: RunLock | None = None,
    on_progress: OnProgress,
) -> QuickstartSummary:
    """Run the job on the Ray that is up; with `resume`, what an earlier run finished is not repeated.

    Args:
        plan: what `plan_generate(config.generate)` returned; None plans here.
        lock: what holds the run directory for the caller; taken here where it is None.
    """
    generated = generate(config.generate, plan=plan, resume=resume, lock=lock, on_progress=on_progress)
    benched = bench(config.bench, resume=resume, on_progress=on_progress)
    report_path = write_report(config.generate.run_dir)
    best = benched.searches[-1]["ranking"][0] if benched.searches else None
    return QuickstartSummary(
        store=str(config.generate.store),
        run_dir=str(config.generate.run_dir),
        report=str(report_path),
        num_snapshots=len(generated.snapshots),
        num_failed=generated.num_failed + benched.num_failed,
        searches=benched.searches,
        best=best,
        generated=generated,
        benched=benched,
    )
