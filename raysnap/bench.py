"""Timed searches: every method on every dataset, each a Ray task alone on its GPU, or alone on the machine.

Methods take turns within a repeat, so that a machine whose speed drifts treats them alike; warm-up runs come first and
leave no row. A search that fails is a row with its error.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from raysnap.config import BenchConfig
from raysnap.data import find_dataset, open_dataset
from raysnap.errors import ConfigError, describe_failure
from raysnap.progress import OnProgress
from raysnap.runs import RunDirectory, utc_timestamp
from raysnap.search import search
from raysnap.search.ranking import find_candidates
from raysnap.store import Store
from raysnap.trials import slug

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One question put to one method; `arguments` are those of `search`."""

    name: str
    dataset: str
    method: str
    proxy: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class BenchSummary:
    """What a benchmark left behind; `searches` holds each cell's run of median time."""

    run_dir: str
    num_searches: int
    num_failed: int
    searches: list[dict[str, Any]]
    failures: list[dict[str, str]]


def plan_bench(config: BenchConfig) -> list[Cell]:
    """The benchmark's cells, checked against what there is; nothing is written.

    Raises:
        RaysnapError: the store or a dataset is not there or is of no use, or no snapshot fits `where`.
    """
    find_candidates(Store.open(config.store), config.where, config.image_size)
    names = {dataset: slug(dataset) for dataset in config.datasets}
    for dataset, name in names.items():
        if find_dataset(dataset, config.data_dir) is not None:
            open_dataset(dataset, config.data_dir, config.shapes)
        if list(names.values()).count(name) > 1:
            raise ConfigError(f"datasets: {dataset!r}: another one is called {name!r} too; rename one of the folders")
    cells = []
    for dataset, proxy, method in itertools.product(config.datasets, config.proxies, config.methods):
        arguments = {
            "store": config.store.resolve(),
            "data": str(Path(dataset).resolve()) if Path(dataset).is_dir() else dataset,
            "data_dir": config.data_dir.resolve(),
            "shapes": config.shapes,
            "method": method,
            "proxy": proxy,
            "num_train": config.num_train,
            "num_test": config.num_test,
            "image_size": config.image_size,
            "budget_bytes": config.budget_bytes,
            "confidence": config.confidence,
            "where": config.where,
            "seed": config.seed,
        }
        cells.append(Cell(f"{names[dataset]}.{proxy}.{method}", names[dataset], method, proxy, arguments))
    return cells


def bench(config: BenchConfig, *, resume: bool = False, on_progress: OnProgress) -> BenchSummary:
    """Runs the benchmark on the Ray that is up; a row per timed search.

    Raises:
        RaysnapError: it can't be started.
    """
    cells = plan_bench(config)
    run = RunDirectory.open(config, config.run_dir, resume=resume)
    started, started_s = utc_timestamp(), time.perf_counter()
    run.write_env(config.seed, started, None, {})
    done = {(row["cell"], row["repeat"]) for row in run.rows() if row["status"] == "done"}
    turns = [(repeat, cell) for repeat in range(config.repeats) for cell in cells if (cell.name, repeat) not in done]
    num_turns = config.repeats * len(cells)
    waiting_cells = list({cell.name: cell for _, cell in turns}.values())
    for number in range(config.num_warmups):
        for cell in waiting_cells:
            on_progress("bench", num_turns - len(turns), num_turns, f"warm-up {number + 1}: {cell.name}")
            _run_cell(cell, config)
    for number, (repeat, cell) in enumerate(turns, start=num_turns - len(turns)):
        on_progress("bench", number, num_turns, cell.name)
        run.add_row(_run_cell(cell, config) | {"repeat": repeat})
    on_progress("bench", num_turns, num_turns, "done")
    run.write_env(config.seed, started, time.perf_counter() - started_s, {"bench": time.perf_counter() - started_s})
    return _summarise(run, cells)


def _run_cell(cell: Cell, config: BenchConfig) -> dict[str, Any]:
    """The row of one search, run as a Ray task that has a GPU or the machine to itself."""
    num_gpus = config.resources.gpus if config.resources.gpus is not None else min(1.0, _largest("GPU"))
    num_cpus = config.resources.cpus if num_gpus else _largest("CPU")
    task = _search_task.options(num_cpus=num_cpus, num_gpus=num_gpus)
    row = {"cell": cell.name, "method": cell.method, "proxy": cell.proxy, "dataset": cell.dataset}
    try:
        outcome = ray.get(task.remote(cell.arguments))
        row |= {"status": "done", "error": None} | outcome
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        row |= {"status": "failed", "error": describe_failure(cause), "search": None}
    return row | {"finished": utc_timestamp()}


@ray.remote(max_retries=0)
def _search_task(arguments: dict[str, Any]) -> dict[str, Any]:
    num_threads = int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count() or 1
    torch.set_num_threads(num_threads)
    return {"search": search(**arguments).to_dict(), "num_threads": num_threads}


def _largest(resource: str) -> float:
    """How much of a resource the best-equipped node has."""
    return max((node["Resources"].get(resource, 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)


def _summarise(run: RunDirectory, cells: list[Cell]) -> BenchSummary:
    rows = list({(row["cell"], row["repeat"]): row for row in run.rows()}.values())
    searches = []
    for cell in cells:
        timed = [row["search"] for row in rows if row["cell"] == cell.name and row["status"] == "done"]
        if timed:
            searches.append(sorted(timed, key=lambda search: search["timings_s"]["total"])[len(timed) // 2])
    failed = [row for row in rows if row["status"] != "done"]
    return BenchSummary(
        run_dir=str(run.path),
        num_searches=len(rows),
        num_failed=len(failed),
        searches=searches,
        failures=[{"cell": row["cell"], "error": row["error"]} for row in failed],
    )
