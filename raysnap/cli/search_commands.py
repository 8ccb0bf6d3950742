"""Commands that search and time searches."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raysnap.cli.console import SOME_FAILED, AsJson, DataDir, StoreDir, print_failures, print_json, print_result
from raysnap.config.choices import Method, Proxy

if TYPE_CHECKING:
    from raysnap.bench.cells import Cell
    from raysnap.config.bench import BenchConfig
    from raysnap.config.search_options import SearchOptions
    from raysnap.search import SearchResult
from raysnap.cli.console import ConfigPath, DryRun, Overrides, Resume
from raysnap.cli.ray_session import OBJECT_STORE_BYTES, WORKER_OBJECT_BYTES, job_session, ray_session

FEATURE_CACHE_BYTES = 2**30


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
    from raysnap.config.search_options import SearchOptions
    from raysnap.search import search as run
    from raysnap.search.candidates import check_question

    keywords = {
        "method": method,
        "proxy": proxy,
        "num_train": num_train,
        "num_test": num_test,
        "image_size": image_size,
        "budget_bytes": budget_bytes,
        "confidence": confidence,
        "where": where,
        "seed": seed,
        "data_dir": data_dir,
        "workers": workers,
        "feature_cache_bytes": feature_cache_bytes,
    }
    options = SearchOptions.of(None, keywords)
    if workers > 1:  # mistakes are told before Ray takes seconds to start
        check_question(store_dir, data, options)
    with nullcontext() if workers == 1 else ray_session(OBJECT_STORE_BYTES + workers * WORKER_OBJECT_BYTES):
        result = run(store_dir, data, options)
    if as_json:
        print_json(result)
    else:
        from raysnap.cli.search_tables import ranking_table, search_lines

        if explain:
            _explain(store_dir, result, options)
        print_result(ranking_table(result.to_dict()))
        print_result(f"\n{search_lines(result.to_dict())}")
        print_failures([{"snapshot": one.name, "error": one.error} for one in result.skipped])
    return SOME_FAILED if result.skipped else 0


def _explain(store_dir: Path, result: SearchResult, options: SearchOptions) -> None:
    """Draws the tree that the search shared blocks by, and its rungs."""
    from raysnap.cli.search_tables import prefix_tree, rungs_table
    from raysnap.search.candidates import find_candidates
    from raysnap.search.plan.outline import outline
    from raysnap.search.plan.rungs import shares_prefixes
    from raysnap.search.plan.tree import build_tree
    from raysnap.store.store import Store

    tree = build_tree(find_candidates(Store.open(store_dir), options.where, options.image_size), sharing=True)
    is_shared = shares_prefixes(result.method)
    title = "What candidates share" + ("" if is_shared else f" ({result.method} runs it once for each)")
    print_result(prefix_tree(outline(tree), title))
    print_result("")
    print_result(rungs_table(result.to_dict()["rungs"]))
    print_result("")


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

    with job_session(config, resume=resume) as on_progress:
        summary = run(config, groups=groups or [], plan=cells, resume=resume, on_progress=on_progress)
    report_path = write_report(config.run_dir)
    if as_json:
        print_json(summary)
    else:
        from raysnap.cli.search_tables import methods_table, noise_lines

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
        from raysnap.cli.search_tables import cells_table
        from raysnap.humanize import flops_text, plural

        print_result(cells_table(cells, works))
        print_result(f"\n{plural(len(cells), 'cell')}, {plural(num_runs, 'timed run')}: {flops_text(flops)} in all.")
        if any(work and not work.is_exact for work in works):
            print_result("~: whom the rungs keep is not known before they ran; candidates kept by lot, on average.")
        print_result(
            "".join(f"Made first: {name} in {path}\n" for name, path in to_make.items()) + "Nothing was written."
        )
    return 0
