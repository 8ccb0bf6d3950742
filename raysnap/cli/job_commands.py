"""Commands that make snapshots: quickstart, generate, sweep, synthesize."""

from __future__ import annotations

import re
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raysnap.cli.console import (
    SOME_FAILED,
    AsJson,
    ConfigPath,
    DryRun,
    Overrides,
    Resume,
    any_path,
    kept_path,
    print_failures,
    print_json,
    print_result,
    simple_table,
)
from raysnap.cli.job_session import job_session
from raysnap.errors import UsageError
from raysnap.progress import show_progress

if TYPE_CHECKING:
    from rich.table import Table

    from raysnap.config.jobs import TrialsConfig
    from raysnap.planning.generate import TrialsPlan


def quickstart(
    overrides: Overrides = None,
    directory: Annotated[
        Path, typer.Option("--dir", metavar="DIR", parser=kept_path, help="Folder for everything it writes.")
    ] = Path("quickstart"),
    as_json: AsJson = False,
) -> int:
    """Try everything on built-in data, offline.

    Takes about two minutes: trains a base model, fine-tunes it on several datasets, stores the snapshots, times the
    search methods and writes a report. Run it again in the same folder to continue; finished work is not repeated.
    """
    from raysnap.config.load import find_config, load_config
    from raysnap.config.quickstart import QuickstartConfig

    if directory.exists() and not directory.is_dir():
        raise UsageError(f"--dir {directory}: expected a folder, or nothing yet, found a file; choose another --dir")
    config = load_config(find_config("quickstart"), overrides or [], QuickstartConfig).inside(directory)
    from raysnap.planning.generate import plan_generate

    plan = plan_generate(config.generate)
    with job_session(config.generate, resume=True) as (lock, on_progress):
        from raysnap.cli.quickstart import quickstart as run

        summary = run(config, plan=plan, resume=True, lock=lock, on_progress=on_progress)
    if as_json:
        print_json(summary)
    else:
        from raysnap.cli.search_tables import methods_table, ranking_table
        from raysnap.cli.store_tables import savings_line
        from raysnap.store.store import Store

        stats = Store.open(Path(summary.store)).stats()
        print_failures(summary.generated.failures + summary.benched.failures)
        if summary.searches:
            search = summary.searches[-1]
            print_result(f"\nWhich snapshot is the best start for {search['dataset']}?  (method {search['method']})\n")
            print_result(ranking_table(search, max_rows=5))
            print_result("\nHow long each search method took\n")
            print_result(methods_table(summary.benched.cells))
        print_result(f"\n{savings_line(stats)}\nReport: {summary.report}")
    return SOME_FAILED if summary.num_failed else 0


def init(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Configuration to copy; without it, those that ship are listed."),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FILE.yaml", parser=any_path, help="File to write; by default NAME.yaml."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Copy a configuration that ships with raysnap, to be changed.

    Commands take the bare name of a configuration, too: `raysnap generate trained_snapshots_small num_snapshots=4`.
    """
    from raysnap.atomic import write_atomically
    from raysnap.config.load import find_config, shipped_configs

    if name is None:
        if to is not None:
            raise UsageError("init: expected a NAME to copy with --to, found none; `raysnap init` lists the names")
        found = {one: _first_comment(path) for one, path in shipped_configs().items()}
        if as_json:
            print_json({"configs": found})
        else:
            print_result(simple_table(["name", ""], found.items()))
        return 0
    text = find_config(name).read_text(encoding="utf-8")
    target = to or Path(f"{name}.yaml")
    if target.exists():
        raise UsageError(f"{target}: expected no such file yet, found one; choose another --to")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, text)
    except OSError as error:
        raise UsageError(f"{target}: can't be written: {error.strerror or error}") from None
    if as_json:
        print_json({"config": str(target)})
    else:
        print_result(str(target))
    return 0


def _first_comment(path: Path) -> str:
    """Return what a configuration says that it is for: the first sentence of the comment that it begins with."""
    lines = takewhile(lambda line: line.strip("# "), path.read_text(encoding="utf-8").splitlines())
    comment = " ".join(line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines))
    return re.split(r"(?<=[.:]) ", comment)[0].rstrip(".:")


def generate(
    config_path: ConfigPath,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    as_json: AsJson = False,
) -> int:
    """Fine-tune many models and store them as snapshots.

    The configuration names architectures, datasets, the base to start from and how many blocks are retrained.
    """
    from raysnap.config.jobs import GenerateConfig
    from raysnap.config.load import load_config

    config = load_config(config_path, overrides or [], GenerateConfig)
    from raysnap.cli.training_tables import trials_table
    from raysnap.planning.forecast import check_room, forecast
    from raysnap.planning.generate import plan_generate

    plan = plan_generate(config)
    if dry_run:
        return _show_plan(config, plan, trials_table([*plan.bases, *plan.trials]), as_json)
    from raysnap.jobs.generate import generate as run
    from raysnap.report.page import write_report

    check_room(config, forecast(config, plan))
    with job_session(config, resume=resume) as (lock, on_progress):
        summary = run(config, plan=plan, resume=resume, lock=lock, on_progress=on_progress)
    report_path = write_report(config.run_dir)
    if as_json:
        print_json(summary)
    else:
        from raysnap.cli.store_tables import savings_line
        from raysnap.cli.training_tables import renamed_lines, trained_table
        from raysnap.runs.run import read_run
        from raysnap.store.store import Store

        print_failures(summary.failures)
        if summary.num_done:
            print_result(trained_table(read_run(config.run_dir).done_trials))
        counts = f"{summary.num_done} of {summary.num_trials} trials done, {summary.num_failed} failed."
        print_result("\n".join(["", counts, *renamed_lines(summary.renamed)]))
        print_result(f"{savings_line(Store.open(config.store).stats())}\nReport: {report_path}")
    return SOME_FAILED if summary.num_failed else 0


def sweep(
    config_path: ConfigPath,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    as_json: AsJson = False,
) -> int:
    """Compare fine-tunes over a search space and keep the best.

    Trials may differ in hyperparameters, in the number of retrained blocks and in the base they start from.
    """
    from raysnap.config.load import load_config
    from raysnap.config.sweep import SweepConfig

    config = load_config(config_path, overrides or [], SweepConfig)
    from raysnap.cli.training_tables import points_table
    from raysnap.planning.forecast import check_room, forecast
    from raysnap.planning.sweep import plan_sweep

    plan = plan_sweep(config)
    if dry_run:
        return _show_plan(config, plan, points_table(plan.trials), as_json)
    check_room(config, forecast(config, plan))
    with job_session(config, resume=resume) as (lock, on_progress):
        from raysnap.jobs.sweep import sweep as run

        summary = run(config, plan=plan, resume=resume, lock=lock, on_progress=on_progress)
    from raysnap.report.page import write_report

    report_path = write_report(config.run_dir)
    if as_json:
        print_json(summary)
    else:
        from raysnap.cli.training_tables import renamed_lines, sweep_lines, sweep_table
        from raysnap.runs.json_fields import read_rows
        from raysnap.runs.trial_rows import TrialRow

        print_failures(summary.failures)
        if summary.best:
            rows = [TrialRow.read(row) for row in read_rows(config.run_dir / "results.jsonl") if "trial" in row]
            print_result(sweep_table(rows, config.metric, config.mode))
        print_result("\n".join(["", sweep_lines(summary), *renamed_lines(summary.renamed), f"Report: {report_path}"]))
    return SOME_FAILED if summary.num_failed else 0


def _show_plan(config: TrialsConfig, plan: TrialsPlan, table: Table, as_json: bool) -> int:
    """Print what a job would do and need.

    Raises:
        ConfigError: this machine has no room for it, or a trial is forecast not to fit its GPUs.
    """
    from raysnap.cluster.gpu_room import known_gpu_bytes
    from raysnap.planning.forecast import check_room, forecast
    from raysnap.planning.gpu_memory import check_gpus

    needed = forecast(config, plan, known_gpu_bytes())
    if as_json:
        trials = [trial.model_dump(mode="json") for trial in [*plan.bases, *plan.trials]]
        document = {"run_dir": str(config.run_dir), "num_trials": needed.num_trials, "trials": trials}
        print_json(document | {"forecast": asdict(needed)})
    else:
        from raysnap.cli.training_tables import forecast_lines, gpu_memory_table

        print_result(table)
        if needed.gpu_kinds:
            print_result("\nWhat each trial takes on a GPU, by forecast; what trials share a GPU by is measured\n")
            print_result(gpu_memory_table(needed))
        print_result(f"\n{forecast_lines(needed, num_finetunes=len(plan.trials), num_bases=len(plan.bases))}")
    check_room(config, needed)
    check_gpus(needed.gpu_kinds, needed.gpu_bytes)
    return 0


def synthesize(
    config_path: ConfigPath, overrides: Overrides = None, resume: Resume = False, as_json: AsJson = False
) -> int:
    """Make untrained snapshots that share blocks, for benchmarks.

    Each is a base whose last blocks are replaced by randomly initialised ones.
    """
    from raysnap.config.jobs import SynthesizeConfig
    from raysnap.config.load import load_config

    config = load_config(config_path, overrides or [], SynthesizeConfig)
    from raysnap.cli.store_tables import savings_line
    from raysnap.cli.training_tables import renamed_lines
    from raysnap.jobs.synthesize import synthesize as run
    from raysnap.planning.synthetic import plan_synthesize
    from raysnap.store.store import Store

    plan = plan_synthesize(config)
    with show_progress() as on_progress:
        summary = run(config, plan=plan, resume=resume, on_progress=on_progress)
    if as_json:
        print_json(summary)
    else:
        lines = [f"{len(summary.snapshots)} snapshots.", *renamed_lines(summary.renamed)]
        print_result("\n".join([*lines, savings_line(Store.open(config.store).stats())]))
    return 0
