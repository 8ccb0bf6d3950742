"""Commands that search, and that time searches."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raysnap.cli.console import (
    SOME_FAILED,
    AsJson,
    ConfigPath,
    DataDir,
    DryRun,
    Overrides,
    Resume,
    StoreDir,
    print_failures,
    print_json,
    print_result,
    request_lines,
)
from raysnap.cli.job_session import job_session, shown_ray_session
from raysnap.cli.search_arguments import (
    BudgetBytes,
    Data,
    Explain,
    FeatureCacheBytes,
    ImageSize,
    MaxCandidates,
    MemoryBytes,
    NumTest,
    NumTrain,
    SearchMethod,
    SearchProxy,
    Seed,
    TimeBudget,
    Tolerance,
    UseRecords,
    Where,
    Workers,
)
from raysnap.cluster.session import OBJECT_STORE_BYTES, WORKER_OBJECT_BYTES
from raysnap.progress import QUIET_S, show_progress
from raysnap.system import since_enter_s

if TYPE_CHECKING:
    from raysnap.bench.cells import Cell
    from raysnap.config.bench import BenchConfig
    from raysnap.config.folders import StorePath
    from raysnap.config.search_options import SearchOptions
    from raysnap.search import SearchResult

FEATURE_CACHE_BYTES = 2**30
DEFAULT_TOLERANCE = 0.01  # those of SearchOptions, which is imported late to keep `--help` fast
DEFAULT_MAX_CANDIDATES = 64
DEFAULT_NUM_TRAIN = 8000
DEFAULT_NUM_TEST = 2000
LEAST_TIME_S = 0.001  # of a time budget that the start of the command has used up; the first rung runs in any case


def search(
    data: Data,
    store_dir: StoreDir = Path("store"),
    data_dir: DataDir = Path("data"),
    method: SearchMethod = "auto",
    proxy: SearchProxy = "linear",
    num_train: NumTrain = DEFAULT_NUM_TRAIN,
    num_test: NumTest = DEFAULT_NUM_TEST,
    image_size: ImageSize = None,
    time_budget_s: TimeBudget = None,
    budget_bytes: BudgetBytes = None,
    memory_bytes: MemoryBytes = None,
    tolerance: Tolerance = DEFAULT_TOLERANCE,
    where: Where = None,
    max_candidates: MaxCandidates = DEFAULT_MAX_CANDIDATES,
    use_records: UseRecords = True,
    seed: Seed = 0,
    workers: Workers = 1,
    feature_cache_bytes: FeatureCacheBytes = FEATURE_CACHE_BYTES,
    explain: Explain = False,
    as_json: AsJson = False,
) -> int:
    """Rank a store's snapshots as starting points for a dataset.

    Each candidate turns items of the dataset into features, and a cheap proxy scores them; nothing is fine-tuned.

    `baseline` and `shared` score every candidate on all items. `shift`, `alsatian` and `nested` work in rounds, called
    rungs: each adds items and keeps only the better candidates. `shared`, `alsatian` and `nested` run a block that
    several candidates begin with only once. `auto` takes `shared` or `nested`, whichever is forecast to answer sooner.
    """
    from raysnap.config.search_options import SearchOptions
    from raysnap.search import search as run
    from raysnap.search.candidates import check_names, check_question

    keywords = {
        "method": method,
        "proxy": proxy,
        "num_train": num_train or None,
        "num_test": num_test or None,
        "image_size": image_size,
        "time_budget_s": time_budget_s,
        "budget_bytes": budget_bytes,
        "memory_bytes": memory_bytes,
        "tolerance": tolerance,
        "where": where,
        "max_candidates": max_candidates or None,
        "use_records": use_records,
        "seed": seed,
        "data_dir": data_dir,
        "workers": workers,
        "feature_cache_bytes": feature_cache_bytes,
    }
    options = SearchOptions.of(None, keywords)
    check_names(store_dir, data, data_dir, where=where)  # report mistakes before torch takes seconds to import
    if workers > 1:
        check_question(store_dir, data, options)
    with show_progress(silent_s=QUIET_S) as on_progress:
        worker_bytes = OBJECT_STORE_BYTES + workers * WORKER_OBJECT_BYTES
        with nullcontext() if workers == 1 else shown_ray_session(worker_bytes, None, on_progress, [store_dir]):
            start_s = since_enter_s()
            found = run(store_dir, data, _with_time_left(options, start_s), on_progress=on_progress)
    result = _from_enter(found, start_s)
    if as_json:
        print_json(result.to_dict() | {"asked": _asked(store_dir, data, options)})
    else:
        _show_result(store_dir, data, result, options, explain=explain)
    return SOME_FAILED if result.skipped else 0


def _asked(store_dir: StorePath, data: str, options: SearchOptions) -> dict[str, Any]:
    """Return which store was asked about which dataset, where and when: what a report of the search says of it."""
    from raysnap.config.folders import absolute
    from raysnap.datasets.dataset import find_dataset
    from raysnap.runs.environment import describe_environment
    from raysnap.system import utc_timestamp

    root = find_dataset(data, options.data_dir, options.shapes)
    return {
        "store": str(absolute(store_dir)),
        "data": str(root.absolute()) if root else data,
        "environment": describe_environment() | {"finished": utc_timestamp()},
    }


def _with_time_left(options: SearchOptions, start_s: float) -> SearchOptions:
    """Return the options with what the start of the command left of the time budget; a search begins in any case."""
    if options.time_budget_s is None:
        return options
    return options.model_copy(update={"time_budget_s": max(LEAST_TIME_S, options.time_budget_s - start_s)})


def _from_enter(result: SearchResult, start_s: float) -> SearchResult:
    """Return the result with a total that counts from the start of the command, not from the call."""
    timings_s = {
        "total": result.timings_s["total"] + start_s,
        "start": result.timings_s.get("start", 0.0) + start_s,
    }
    return replace(result, timings_s=result.timings_s | timings_s) if start_s else result


def _show_result(
    store_dir: StorePath, data: str, result: SearchResult, options: SearchOptions, *, explain: bool
) -> None:
    """Print the ranking and what the search cost; skipped candidates go to stderr."""
    from raysnap.cli.search_tables import (
        forecast_line,
        forecast_table,
        next_lines,
        overrun_line,
        ranking_table,
        search_lines,
    )

    if explain:
        print_result(forecast_table(result.to_dict()["forecast"], result.method))
        print_result(f"{forecast_line(result.to_dict()['forecast'], result.method)}\n")
        _explain(store_dir, result, options)
    print_result(ranking_table(result.to_dict()))
    print_result(f"\n{search_lines(result.to_dict())}")
    budget_s = options.time_budget_s
    if budget_s is not None and (line := overrun_line(result.timings_s["total"], budget_s)):
        print_result(line)
    if line := _limit_line(result):
        print_result(line)
    if result.ranking:
        print_result(f"\n{next_lines(result.to_dict(), store_dir, data, options.data_dir)}")
    print_failures([{"snapshot": skipped.name, "error": skipped.error} for skipped in result.skipped])


def _limit_line(result: SearchResult) -> str:
    """Say that there may be more items than a search takes unasked; empty where it did not need so many."""
    last = result.rungs[-1] if result.rungs else None
    if last is None or (last.num_train != DEFAULT_NUM_TRAIN and last.num_test != DEFAULT_NUM_TEST):
        return ""
    return (
        f"Of the dataset, {last.num_train:,} train and {last.num_test:,} test items were used, a fair sample; "
        "--num-train and --num-test take more, 0 takes all"
    )


def _explain(store_dir: StorePath, result: SearchResult, options: SearchOptions) -> None:
    """Print the tree by which the search shared blocks, and its rungs."""
    from raysnap.cli.search_tables import prefix_tree, rungs_table
    from raysnap.search.candidates import read_candidates
    from raysnap.search.plan.outline import outline
    from raysnap.search.plan.rungs import shares_prefixes
    from raysnap.search.plan.tree import build_tree
    from raysnap.store.store import Store

    store = Store.open(store_dir)
    shown = {line.snapshot for line in result.ranking} | {line.snapshot for line in result.skipped}
    summaries = sorted(summary for summary in store.summaries(options.where) if summary.id in shown)
    tree = build_tree(list(read_candidates(store, summaries, options.image_size)), sharing=True)
    is_shared = shares_prefixes(result.method)
    title = "What candidates share" + ("" if is_shared else f" ({result.method} runs every block once per candidate)")
    print_result(prefix_tree(outline(tree), title))
    print_result("")
    print_result(rungs_table(result.to_dict()["rungs"]))
    asked = request_lines()
    print_result("\n".join(["", *asked, ""] if asked else [""]))


def bench(
    config_path: ConfigPath,
    overrides: Overrides = None,
    groups: Annotated[
        list[str] | None,
        typer.Option("--group", metavar="NAME", help="Run only this group of the configuration; may be repeated."),
    ] = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    as_json: AsJson = False,
) -> int:
    """Time search methods against each other.

    Each search runs alone on its GPU or machine, several times; the report compares the medians.
    """
    from raysnap.config.bench import BenchConfig
    from raysnap.config.load import load_config

    config = load_config(config_path, overrides or [], BenchConfig)
    from raysnap.bench.cells import plan_bench

    chosen = config.only(groups or [])
    cells = plan_bench(chosen)
    if dry_run:
        return _show_bench_plan(chosen, cells, as_json)
    from raysnap.bench.run_bench import bench as run
    from raysnap.report.page import write_report

    with job_session(config, resume=resume) as (lock, on_progress):
        summary = run(config, groups=groups or [], plan=cells, resume=resume, lock=lock, on_progress=on_progress)
    report_path = write_report(config.run_dir)
    if as_json:
        print_json(summary)
    else:
        from raysnap.cli.search_tables import methods_table, noise_lines

        print_failures(summary.failures)
        print_result(methods_table(summary.cells))
        noise = noise_lines(summary.cells)
        print_result(f"\nNoisy:\n{noise}" if noise else "")
        print_result(f"\nReport: {report_path}")
    return SOME_FAILED if summary.num_failed else 0


def _show_bench_plan(config: BenchConfig, cells: list[Cell], as_json: bool) -> int:
    """Print the cells that a benchmark would run and what they would compute."""
    from raysnap.bench.cells import find_sets
    from raysnap.bench.estimates import estimate_work

    works = estimate_work(config, cells)
    missing_sets = {name: str(found.path) for name, found in find_sets(config).items() if not found.is_made}
    num_runs = sum(cell.repeats for cell in cells)
    flops = sum(cell.repeats * work.flops for cell, work in zip(cells, works, strict=True) if work)
    if as_json:
        planned = [cell.axes | {"work": work and asdict(work)} for cell, work in zip(cells, works, strict=True)]
        document = {"run_dir": str(config.run_dir), "num_cells": len(cells), "num_searches": num_runs, "cells": planned}
        print_json(document | {"flops": flops, "synthetic_sets_to_make": missing_sets})
    else:
        from raysnap.cli.search_tables import cells_table
        from raysnap.humanize import flops_text, plural

        print_result(cells_table(cells, works))
        print_result(f"\n{plural(len(cells), 'cell')}, {plural(num_runs, 'timed run')}: {flops_text(flops)} in total.")
        if any(work and not work.is_exact for work in works):
            print_result("~: average over candidates kept at random; which ones a rung keeps is not known in advance.")
        first = "".join(f"To be made first: {name} in {path}\n" for name, path in missing_sets.items())
        print_result(f"{first}Nothing was written.")
    return 0
