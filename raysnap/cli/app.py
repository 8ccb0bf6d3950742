"""The command line: reads arguments, calls one function, prints its result; nothing else starts Ray.

torch and ray are imported inside the commands, so that `raysnap --help` stays fast. Results go to stdout, everything
else to stderr.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raysnap.cli.console import SOME_FAILED, AsJson, DataDir, StoreDir, print_failures, print_json, print_result
from raysnap.cli.data_commands import data_app
from raysnap.cli.store_commands import store_app
from raysnap.config.choices import Method, Proxy
from raysnap.errors import ConfigError, RaysnapError, UsageError, describe_failure
from raysnap.progress import show_progress

if TYPE_CHECKING:
    from raysnap.bench.cells import Cell
    from raysnap.config.load import BenchConfig, FinetuneConfig, GenerateConfig, JobConfig, ResourcesConfig
    from raysnap.planning.generate import TrialsPlan
    from raysnap.progress import OnProgress
    from raysnap.search import SearchResult

app = typer.Typer(
    name="raysnap",
    help="Fine-tune a population of image models on Ray, keep every shared block once, search for the best start.",
    epilog="Exit codes: 0 done; 1 done, but some trials or candidates failed; 2 bad usage, config or input; 3 damaged "
    "store; 130 interrupted. --debug, anywhere on the line, shows the traceback of an error.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")
app.add_typer(store_app, name="store")

INTERRUPTED = 130
OBJECT_STORE_BYTES = 256 * 2**20
WORKER_OBJECT_BYTES = 128 * 2**20
FEATURE_CACHE_BYTES = 2**30

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Override keys of the file: train.epochs=3.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Finish what an earlier run left, repeat nothing finished.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would run, and write nothing.")]


def main(argv: list[str] | None = None) -> int:
    """The exit code of the command line `argv` (that of the process when None); every error becomes one line."""
    given = list(sys.argv[1:] if argv is None else argv)
    is_debugging = "--debug" in given
    arguments = [argument for argument in given if argument != "--debug"] or ["--help"]
    logging.basicConfig(level=logging.WARNING, format="raysnap: %(message)s", stream=sys.stderr)
    try:
        exit_code = app(args=arguments, prog_name="raysnap", standalone_mode=False) or 0
        if exit_code == INTERRUPTED:  # what typer makes of a KeyboardInterrupt
            raise KeyboardInterrupt
        return exit_code
    except (KeyboardInterrupt, typer.Abort):
        print(f"raysnap: interrupted{_how_to_resume(arguments)}", file=sys.stderr)
        return INTERRUPTED
    except RaysnapError as error:
        if is_debugging:
            traceback.print_exc()
        print(f"raysnap: {error}", file=sys.stderr)
        return error.exit_code
    except typer.Exit as end:
        return end.exit_code
    except Exception as error:  # noqa: BLE001 - the end of the line: what nobody foresaw is told in one, too
        if is_debugging:
            traceback.print_exc()
        is_usage = hasattr(error, "format_message")  # a mistake in the command line, as typer found it
        told = _usage_mistake(error) if is_usage else f"unexpected {describe_failure(error)}; run again with --debug"
        print(f"raysnap: {told}", file=sys.stderr)
        return UsageError.exit_code


def _usage_mistake(error: Any) -> str:
    told = error.format_message().replace("Value error, ", "").replace("Input should be ", "expected ")
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "raysnap"
    return f"{told.removesuffix('.')}{' ' if told.endswith('?') else '; '}`{command} --help` says more"


def _how_to_resume(arguments: list[str]) -> str:
    if arguments[0] not in ("quickstart", "generate", "sweep", "synthesize", "bench"):
        return ""
    needs_flag = arguments[0] != "quickstart" and "--resume" not in arguments
    return f"; finish it with: {shlex.join(['raysnap', *arguments, *(['--resume'] if needs_flag else [])])}"


@app.command()
def quickstart(
    overrides: Overrides = None,
    directory: Annotated[Path, typer.Option("--dir", help="Folder for everything it makes.")] = Path("quickstart"),
    as_json: AsJson = False,
) -> int:
    """Run the whole job on built-in data, offline, in two minutes.

    A base, snapshots on several datasets, a store, timed searches and a report; what an earlier run in the same
    folder finished is not repeated.
    """
    from raysnap.config.load import QuickstartConfig, find_config, load_config

    if directory.exists() and not directory.is_dir():
        raise UsageError(f"--dir {directory}: expected a folder, or nothing yet, found a file; choose another --dir")
    config = load_config(find_config("quickstart"), overrides or [], QuickstartConfig).inside(directory)
    from raysnap.planning.generate import plan_generate

    plan_generate(config.generate)
    with _job_session(config.generate, resume=True) as on_progress:
        from raysnap.cli.quickstart import quickstart as run

        summary = run(config, resume=True, on_progress=on_progress)
    if as_json:
        print_json(summary)
    else:
        from raysnap.cli.training_tables import methods_table, ranking_table, savings_line
        from raysnap.store.store import Store

        stats = Store.open(Path(summary.store)).stats()
        print_failures(summary.generated.failures + summary.benched.failures)
        if summary.searches:
            search = summary.searches[-1]
            print_result(f"\nWhich snapshot is the best start for {search['dataset']}?  (method {search['method']})\n")
            print_result(ranking_table(search, max_rows=5))
            print_result("\nThe same question, timed\n")
            print_result(methods_table(summary.benched.cells))
        print_result(f"\n{savings_line(stats)}\nReport: {summary.report}")
    return SOME_FAILED if summary.num_failed else 0


@app.command()
def generate(
    config_path: ConfigPath,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    as_json: AsJson = False,
) -> int:
    """Fine-tune a population of snapshots into a store."""
    from raysnap.config.load import GenerateConfig, load_config

    config = load_config(config_path, overrides or [], GenerateConfig)
    if dry_run:
        return _show_generate_plan(config, as_json)
    from raysnap.jobs.generate import generate as run
    from raysnap.planning.forecast import check_room, forecast
    from raysnap.planning.generate import plan_generate
    from raysnap.report.page import write_report

    check_room(config, forecast(config, plan_generate(config)))
    with _job_session(config, resume=resume) as on_progress:
        summary = run(config, resume=resume, on_progress=on_progress)
    report_path = write_report(config.run_dir)
    if as_json:
        print_json(summary)
    else:
        from raysnap.cli.training_tables import savings_line, trained_table
        from raysnap.runs.run import read_run
        from raysnap.store.store import Store

        print_failures(summary.failures)
        if summary.num_done:
            print_result(trained_table(read_run(config.run_dir).done_trials))
        print_result(f"\n{summary.num_done} of {summary.num_trials} trials done, {summary.num_failed} failed.")
        print_result(f"{savings_line(Store.open(config.store).stats())}\nReport: {report_path}")
    return SOME_FAILED if summary.num_failed else 0


@app.command()
def sweep(
    config_path: ConfigPath,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    as_json: AsJson = False,
) -> int:
    """Compare fine-tunes that differ in hyperparameters, depth or start; keep the best."""
    from raysnap.config.load import SweepConfig, load_config

    config = load_config(config_path, overrides or [], SweepConfig)
    from raysnap.cli.training_tables import points_table
    from raysnap.planning.forecast import check_room, forecast
    from raysnap.planning.sweep import plan_sweep

    plan = plan_sweep(config)
    if dry_run:
        return _show_plan(config, plan, points_table(plan.trials), as_json)
    check_room(config, forecast(config, plan))
    with _job_session(config, resume=resume) as on_progress:
        from raysnap.jobs.sweep import sweep as run

        summary = run(config, resume=resume, on_progress=on_progress)
    from raysnap.report.page import write_report

    report_path = write_report(config.run_dir)
    if as_json:
        print_json(summary)
    else:
        from raysnap.cli.training_tables import sweep_lines, sweep_table
        from raysnap.runs.run_directory import read_rows

        print_failures(summary.failures)
        if summary.best:
            print_result(sweep_table(read_rows(config.run_dir / "results.jsonl"), config.metric, config.mode))
        print_result(f"\n{sweep_lines(summary)}\nReport: {report_path}")
    return SOME_FAILED if summary.num_failed else 0


def _show_generate_plan(config: GenerateConfig, as_json: bool) -> int:
    from raysnap.cli.training_tables import trials_table
    from raysnap.planning.generate import plan_generate

    plan = plan_generate(config)
    return _show_plan(config, plan, trials_table([*plan.bases, *plan.trials]), as_json)


def _show_plan(config: FinetuneConfig, plan: TrialsPlan, table: Any, as_json: bool) -> int:
    """What a job would do and take; refuses what this machine has no room for."""
    from raysnap.planning.forecast import check_room, forecast

    needed = forecast(config, plan)
    if as_json:
        shown = [trial.model_dump(mode="json") for trial in [*plan.bases, *plan.trials]]
        document = {"run_dir": str(config.run_dir), "num_trials": needed.num_trials, "trials": shown}
        print_json(document | {"forecast": asdict(needed)})
    else:
        from raysnap.cli.training_tables import forecast_lines

        print_result(table)
        print_result(f"\n{forecast_lines(needed, num_finetunes=len(plan.trials), num_bases=len(plan.bases))}")
    check_room(config, needed)
    return 0


@app.command()
def synthesize(
    config_path: ConfigPath, overrides: Overrides = None, resume: Resume = False, as_json: AsJson = False
) -> int:
    """Make synthetic snapshots: a base with fresh top blocks, untrained."""
    from raysnap.config.load import SynthesizeConfig, load_config

    config = load_config(config_path, overrides or [], SynthesizeConfig)
    from raysnap.cli.training_tables import savings_line
    from raysnap.jobs.synthesize import synthesize as run
    from raysnap.store.store import Store

    with show_progress() as on_progress:
        summary = run(config, resume=resume, on_progress=on_progress)
    if as_json:
        print_json(summary)
    else:
        print_result(f"{len(summary.snapshots)} snapshots.\n{savings_line(Store.open(config.store).stats())}")
    return 0


@app.command()
def search(
    data: Annotated[str, typer.Option("--data", help="A dataset's name, or the path of an ImageFolder.")],
    store_dir: StoreDir = Path("store"),
    data_dir: DataDir = Path("data"),
    method: Annotated[Method, typer.Option("--method", help="Who is tried on how many items.")] = "nested",
    proxy: Annotated[Proxy, typer.Option("--proxy", help="The score that stands for fine-tuned accuracy.")] = "linear",
    num_train: Annotated[int | None, typer.Option("--num-train", min=1, help="Train items to probe on.")] = None,
    num_test: Annotated[int | None, typer.Option("--num-test", min=1, help="Items to score on.")] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=16, help="Edge in pixels; each snapshot's own when not given.")
    ] = None,
    budget_bytes: Annotated[
        int | None, typer.Option("--budget", min=1, help="Bound on the activations held, in bytes.")
    ] = None,
    confidence: Annotated[
        float,
        typer.Option(
            "--confidence",
            min=0,
            help="How sure (below 1) `nested` must be of the winner; 0 keeps the upper half alone.",
        ),
    ] = 0.95,
    where: Annotated[str | None, typer.Option("--where", help='Which snapshots: "accuracy > 0.8".')] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the items and the probes.")] = 0,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Processes that compute; more than 1 are Ray actors.")
    ] = 1,
    feature_cache_bytes: Annotated[
        int, typer.Option("--feature-cache", min=0, help="Bytes kept beside the data for the next search; 0 is none.")
    ] = FEATURE_CACHE_BYTES,
    explain: Annotated[
        bool, typer.Option("--explain", help="Draw what candidates share, and say what each rung did.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Rank a store's snapshots as starts for a dataset."""
    from raysnap.search import search as run
    from raysnap.search.ranking import check_question

    if workers > 1:  # mistakes are told before Ray takes seconds to start
        check_question(store_dir, data, data_dir, where)
    with nullcontext() if workers == 1 else _ray_session(OBJECT_STORE_BYTES + workers * WORKER_OBJECT_BYTES):
        result = run(
            store_dir,
            data,
            method=method,
            proxy=proxy,
            num_train=num_train,
            num_test=num_test,
            image_size=image_size,
            budget_bytes=budget_bytes,
            confidence=confidence,
            where=where,
            seed=seed,
            data_dir=data_dir,
            workers=workers,
            feature_cache_bytes=feature_cache_bytes,
        )
    if as_json:
        print_json(result)
    else:
        from raysnap.cli.training_tables import ranking_table, search_lines

        if explain:
            _explain(store_dir, result, where, image_size)
        print_result(ranking_table(result.to_dict()))
        print_result(f"\n{search_lines(result.to_dict())}")
        print_failures([{"snapshot": one.name, "error": one.error} for one in result.skipped])
    return SOME_FAILED if result.skipped else 0


def _explain(store_dir: Path, result: SearchResult, where: str | None, image_size: int | None) -> None:
    """Draws the tree that the search shared blocks by, and its rungs."""
    from raysnap.cli.training_tables import prefix_tree, rungs_table
    from raysnap.search.plan.outline import outline
    from raysnap.search.plan.tree import build_tree
    from raysnap.search.plan.walk import shares_prefixes
    from raysnap.search.ranking import find_candidates
    from raysnap.store.store import Store

    tree = build_tree(find_candidates(Store.open(store_dir), where, image_size), sharing=True)
    is_shared = shares_prefixes(result.method)
    title = "What candidates share" + ("" if is_shared else f" ({result.method} runs it once for each)")
    print_result(prefix_tree(outline(tree), title))
    print_result("")
    print_result(rungs_table(result.to_dict()["rungs"]))
    print_result("")


@app.command()
def bench(
    config_path: ConfigPath,
    overrides: Overrides = None,
    groups: Annotated[
        list[str] | None, typer.Option("--group", help="Run this group of the file alone; may be given again.")
    ] = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    as_json: AsJson = False,
) -> int:
    """Time searches against each other, each alone on its GPU or machine."""
    from raysnap.config.load import BenchConfig, load_config

    config = load_config(config_path, overrides or [], BenchConfig)
    from raysnap.bench.cells import plan_bench

    chosen = config.only(groups or [])
    cells = plan_bench(chosen)
    if dry_run:
        return _show_bench_plan(chosen, cells, as_json)
    from raysnap.bench.run_bench import bench as run
    from raysnap.report.page import write_report

    with _job_session(config, resume=resume) as on_progress:
        summary = run(config, groups=groups or [], resume=resume, on_progress=on_progress)
    report_path = write_report(config.run_dir)
    if as_json:
        print_json(summary)
    else:
        from raysnap.cli.training_tables import methods_table, noise_lines

        print_failures(summary.failures)
        print_result(methods_table(summary.cells))
        doubts = noise_lines(summary.cells)
        print_result(f"\nTo be doubted:\n{doubts}" if doubts else "")
        print_result(f"\nReport: {report_path}")
    return SOME_FAILED if summary.num_failed else 0


def _show_bench_plan(config: BenchConfig, cells: list[Cell], as_json: bool) -> int:
    from raysnap.bench.cells import find_sets
    from raysnap.bench.estimates import estimate_work

    works = estimate_work(config, cells)
    to_make = {name: str(one.path) for name, one in find_sets(config).items() if not one.is_made}
    num_runs = sum(cell.repeats for cell in cells)
    flops = sum(cell.repeats * work.flops for cell, work in zip(cells, works, strict=True) if work)
    if as_json:
        shown = [cell.axes | {"work": work and asdict(work)} for cell, work in zip(cells, works, strict=True)]
        document = {"run_dir": str(config.run_dir), "num_cells": len(cells), "num_searches": num_runs, "cells": shown}
        print_json(document | {"flops": flops, "synthetic_sets_to_make": to_make})
    else:
        from raysnap.cli.training_tables import cells_table
        from raysnap.humanize import flops_text, plural

        print_result(cells_table(cells, works))
        print_result(f"\n{plural(len(cells), 'cell')}, {plural(num_runs, 'timed run')}: {flops_text(flops)} in all.")
        if any(work and not work.is_exact for work in works):
            print_result("~: whom the rungs keep is not known before they ran; candidates kept by lot, on average.")
        print_result(
            "".join(f"Made first: {name} in {path}\n" for name, path in to_make.items()) + "Nothing was written."
        )
    return 0


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run; or what search --json printed, as a file.")],
    out_path: Annotated[
        Path | None, typer.Option("--out", help="File to write; RUN_DIR/report.html by default.")
    ] = None,
) -> int:
    """Write a run's report: one self-contained HTML file, its tables beside it as CSV and Markdown."""
    from raysnap.report.page import write_report

    print_result(str(write_report(run_dir, out_path)))
    return 0


@app.command("config")
def show_config(config_path: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> int:
    """Print the resolved configuration, which reruns the job."""
    from raysnap.config.load import dump_yaml, load_any_config

    config = load_any_config(config_path, overrides or [])
    if as_json:
        print_json(config.model_dump(mode="json"))
    else:
        sys.stdout.write(dump_yaml(config))
    return 0


@app.command()
def doctor(as_json: AsJson = False) -> int:
    """Say what this machine has, and what would fail on it."""
    from raysnap.cli.doctor import examine

    findings = examine(Path.cwd())
    problems = [finding for finding in findings if finding.problem]
    if as_json:
        print_json({"ok": not problems, "findings": [asdict(finding) for finding in findings]})
    else:
        from raysnap.cli.training_tables import findings_table

        print_result(findings_table(findings))
        print_result("" if problems else "\nNothing would fail.")
    return SOME_FAILED if problems else 0


def check_resources(resources: ResourcesConfig, available: dict[str, float]) -> None:
    """Refuses what would wait for ever on this machine; a cluster may still grow."""
    num_workers = max(1, resources.num_workers)
    for key, kind, wanted in (("cpus", "CPU", resources.cpus), ("gpus", "GPU", resources.gpus or 0)):
        found = available.get(kind, 0)
        if num_workers * wanted > found:
            raise ConfigError(
                f"resources.{key}: expected at most the {found:g} {kind}s of this machine, found {num_workers} x "
                f"{wanted:g} for each trial; ask for less, or set RAY_ADDRESS to a cluster that has them"
            )


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt meanwhile; Ray's own handler would end the driver without a word."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _job_session(config: JobConfig, *, resume: bool) -> Iterator[OnProgress]:
    """A progress display and a Ray for a job whose run_dir is fit for it."""
    from raysnap.runs.run_directory import check_run_dir

    check_run_dir(config, config.run_dir, resume=resume)
    with _ray_session(OBJECT_STORE_BYTES, config.resources), show_progress() as on_progress:
        yield on_progress


@contextmanager
def _ray_session(object_store_bytes: int, resources: ResourcesConfig | None = None) -> Iterator[None]:
    """A Ray that has the resources asked for; RAY_ADDRESS names a cluster to use.

    What Ray and its libraries print on stdout goes to stderr meanwhile.
    """
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_AIR_NEW_OUTPUT", "RAY_ENABLE_UV_RUN_RUNTIME_ENV"):
        os.environ.setdefault(name, "0")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # left in place after a fit, it swallows a Ctrl-C
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        import ray

        is_ours = not ray.is_initialized()
        if is_ours:
            address = os.environ.get("RAY_ADDRESS")
            own = {} if address else {"include_dashboard": False, "object_store_memory": object_store_bytes}
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
        try:
            if is_ours and not address and resources:
                check_resources(resources, ray.cluster_resources())
            with interrupted_by_sigterm():
                yield
        finally:
            if is_ours:
                ray.shutdown()
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)
