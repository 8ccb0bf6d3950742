"""Time searches: run every cell of a benchmark several times, each run a Ray task alone on its GPU or machine.

Questions run one after the other. Within each of a question's repeats its methods take turns, so that drifts of the
machine's speed affect them equally. A run that fails is a row with its error; a noisy run says why.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import ray

from raysnap.bench.cells import Cell, SyntheticSet, find_sets, plan_bench
from raysnap.bench.timed_search import time_search
from raysnap.cluster.capacity import most_cpus, read_capacity
from raysnap.cluster.gpus import granted_device
from raysnap.cluster.places import JobFolder, check_places, naming_node, store_places
from raysnap.cluster.waiting import refuse_impossible, told_waits
from raysnap.config.bench import BenchConfig
from raysnap.config.choices import Status
from raysnap.config.parts import ResourcesConfig
from raysnap.datasets.dataset import find_dataset
from raysnap.errors import describe_failure
from raysnap.jobs.synthesize import synthesize
from raysnap.progress import OnProgress, ignore_progress
from raysnap.runs.questions import NOISY_SPREAD
from raysnap.runs.run_directory import RunDirectory, lock_run
from raysnap.runs.run_lock import RunLock
from raysnap.runs.search_rows import SearchRow
from raysnap.system import utc_timestamp

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchSummary:
    """The outcome of a benchmark.

    Attributes:
        searches: each cell's run of median time.
        cells: each cell's axes and the summary of its runs, in the same order; cells without a finished run left out.
        failures: the runs that failed, each with its error.
    """

    run_dir: str
    num_searches: int
    num_failed: int
    searches: list[dict[str, Any]]
    cells: list[dict[str, Any]]
    failures: list[dict[str, str]]


def bench(
    config: BenchConfig,
    *,
    groups: Collection[str] = (),
    plan: list[Cell] | None = None,
    resume: bool = False,
    lock: RunLock | None = None,
    on_progress: OnProgress = ignore_progress,
) -> BenchSummary:
    """Run the benchmark, or these of its groups, on the running Ray; write a row per timed search.

    >>> job = raysnap.BenchConfig(
    ...     datasets=["shapes-shape-a"], image_size=32, methods=["shared"], repeats=1, run_dir="runs/timed",
    ...     shapes={"image_size": 36, "num_train": 16, "num_val": 8, "num_test": 8},
    ... )
    >>> [cell["num_done"] for cell in raysnap.run_bench(job).cells]
    [1]

    Args:
        plan: what `plan_bench` returned for these groups; planned here where it is None.
        lock: what holds the run directory for the caller; taken here where it is None.

    Raises:
        RaysnapError: it can't be started, or a synthetic set can't be made.
    """
    chosen = config.only(groups)
    cells = plan_bench(chosen) if plan is None else plan
    with lock_run(config, config.run_dir, resume=resume, lock=lock) as held:
        check_places(_places(config, chosen, cells))
        run = RunDirectory.open(config, held, resume=resume)
        return _run_cells(config, chosen, cells, run, on_progress)


def _places(config: BenchConfig, chosen: BenchConfig, cells: list[Cell]) -> list[JobFolder]:
    """Return the folders that the searches read, as all nodes must see them."""
    sets = find_sets(chosen)
    made_later = {synthetic.path / "store" for synthetic in sets.values() if not synthetic.is_made}
    stores = dict.fromkeys(cell.store_dir for cell in cells if cell.store_dir not in made_later)
    folders = {
        data: find_dataset(data, config.data_dir, config.shapes) for data in dict.fromkeys(cell.data for cell in cells)
    }
    return [
        *(place for store in stores for place in store_places("store", store, "read")),
        *([JobFolder("synthetic_dir", config.synthetic_dir, "shared")] if made_later else []),
        *([JobFolder("data_dir", config.data_dir, "shared")] if None in folders.values() else []),
        *(JobFolder(f"dataset {data!r}", folder, "read") for data, folder in folders.items() if folder is not None),
    ]


def _run_cells(
    config: BenchConfig, chosen: BenchConfig, cells: list[Cell], run: RunDirectory, on_progress: OnProgress
) -> BenchSummary:
    started, started_s = utc_timestamp(), time.perf_counter()
    machines = _known_machines(run)
    run.write_env(config.seed, started, None, {}, machines=machines)
    for name, synthetic in find_sets(chosen).items():
        if not synthetic.is_made:
            logger.info("making the synthetic set %s in %s", name, synthetic.path)
            make_set(synthetic, on_progress)
    made_s = time.perf_counter() - started_s
    done = {(row["cell"], row["repeat"]) for row in run.rows() if row["status"] == Status.DONE}
    turns = [(repeat, cell) for repeat, cell in _turns(cells) if (cell.name, repeat) not in done]
    num_turns = sum(cell.repeats for cell in cells)
    for number, (repeat, cell) in enumerate(turns, start=num_turns - len(turns)):
        on_progress("bench", number, num_turns, cell.name)
        row, facts = _run_cell(cell, repeat, config)
        if row.machine is not None and row.machine not in machines:
            machines[row.machine] = facts
            run.write_env(config.seed, started, None, {}, machines=machines)
        run.add_row(row.as_json())
    on_progress("bench", num_turns, num_turns, "done")
    wall_s = time.perf_counter() - started_s
    stages_s = {"synthesize": made_s, "bench": wall_s - made_s}
    run.write_env(config.seed, started, wall_s, stages_s, machines=machines)
    return _summarise(run, cells)


def make_set(synthetic: SyntheticSet, on_progress: OnProgress) -> None:
    """Make the set, or what an interrupted benchmark left of it to make.

    Raises:
        RaysnapError: it can't be made.
    """
    synthetic.path.mkdir(parents=True, exist_ok=True)
    with (synthetic.path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another benchmark may be making the same set
        if not synthetic.is_made:
            synthesize(synthetic.config, resume=True, on_progress=on_progress)


def _turns(cells: Sequence[Cell]) -> list[tuple[int, Cell]]:
    """Return the timed runs in order: question by question, repeat by repeat, every method in turn."""
    turns: list[tuple[int, Cell]] = []
    for _, members in itertools.groupby(cells, key=lambda cell: cell.question):
        asked = list(members)
        turns += [(repeat, cell) for repeat in range(asked[0].repeats) for cell in asked]
    return turns


def _run_cell(cell: Cell, repeat: int, config: BenchConfig) -> tuple[SearchRow, dict[str, Any]]:
    """Run a cell once, in a Ray task with a GPU or the machine to itself; return its row and the machine's facts."""
    bundle = _bundle(config.resources)
    task = _search_task.options(num_cpus=bundle["CPU"], num_gpus=bundle["GPU"]).remote(cell, bundle["GPU"])
    try:
        with told_waits("a timed search", lambda: [bundle]):
            measured: dict[str, Any] = ray.get(task)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        error_text = describe_failure(cause)
        row = SearchRow(**cell.axes, status=Status.FAILED, error=error_text, finished=utc_timestamp(), repeat=repeat)
        return row, {}
    except BaseException:  # an interrupt: the task must not disturb what runs next
        ray.cancel(task, force=True)
        raise
    facts: dict[str, Any] = measured.pop("machine_facts")
    return SearchRow(**cell.axes, status=Status.DONE, **measured, finished=utc_timestamp(), repeat=repeat), facts


@ray.remote(max_retries=0)
def _search_task(cell: Cell, num_gpus: float) -> dict[str, Any]:
    granted_device(num_gpus, ray.util.get_node_ip_address())
    with naming_node():
        return time_search(cell)


def _bundle(resources: ResourcesConfig) -> dict[str, float]:
    """Return what a timed search gets, alone on it: GPUs where the cluster has or may get any, else a whole node.

    Raises:
        ClusterError: the cluster has no room for it, and may never get it.
    """
    capacity = read_capacity()
    num_gpus = min(1.0, capacity.largest("GPU")) if resources.gpus is None else resources.gpus
    least = {"CPU": resources.cpus, "GPU": num_gpus}
    capacity = refuse_impossible("each timed search", least)
    return least if num_gpus else least | {"CPU": most_cpus(capacity, least, 1)}


def _known_machines(run: RunDirectory) -> dict[str, Any]:
    """Return the machines that an earlier part of the run used."""
    try:
        known = json.loads((run.path / "env.json").read_text("utf-8"))["machines"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return known if isinstance(known, dict) else {}


def _summarise(run: RunDirectory, cells: list[Cell]) -> BenchSummary:
    done: dict[str, list[SearchRow]] = {cell.name: [] for cell in cells}
    read = [SearchRow.read(row) for row in run.rows() if row["cell"] in done]
    rows = list({(row.cell, row.repeat): row for row in read}.values())
    for row in rows:
        if row.status == Status.DONE:
            done[row.cell].append(row)
    failed = [row for row in rows if row.status != Status.DONE]
    timed = [(cell, done[cell.name]) for cell in cells if done[cell.name]]
    return BenchSummary(
        run_dir=str(run.path),
        num_searches=len(rows),
        num_failed=len(failed),
        searches=[_median_run(runs).search for _, runs in timed],
        cells=[_summarise_cell(cell, runs) for cell, runs in timed],
        failures=[{"cell": row.cell, "error": row.error or ""} for row in failed],
    )


def _median_run(rows: list[SearchRow]) -> SearchRow:
    return sorted(rows, key=_total_s)[len(rows) // 2]


def _total_s(row: SearchRow) -> float:
    seconds: float = row.search["timings_s"]["total"]
    return seconds


def _summarise_cell(cell: Cell, rows: list[SearchRow]) -> dict[str, Any]:
    """Return a cell's axes, the median and spread of its times, the counters of its median run, and its noise."""
    totals_s = [_total_s(row) for row in rows]
    low_s, _, high_s = quantiles(totals_s, n=4, method="inclusive") if len(totals_s) > 1 else [0.0] * 3
    median_s, iqr_s = median(totals_s), high_s - low_s
    noise = [f"run {row.repeat + 1}: {reason}" for row in rows for reason in row.noise]
    if iqr_s > NOISY_SPREAD * median_s:
        noise.insert(0, f"the middle half of its times spans {iqr_s / median_s * 100:.0f} % of their median")
    middle = _median_run(rows)
    work, ranking = middle.search["work"], middle.search["ranking"]
    best = ranking[0] if ranking else {"name": None, "score": None}
    return cell.axes | {
        "num_done": len(rows),
        "median_s": median_s,
        "iqr_s": iqr_s,
        "flops": work["flops"],
        "block_item_passes": work["block_item_passes"],
        "block_bytes_read": work["block_bytes_read"],
        "disk_bytes_read": middle.io["read_bytes"],
        "page_cache": middle.page_cache["state"],
        "best": best["name"],
        "best_score": best["score"],
        "best_num_scored": best.get("num_scored"),
        "is_noisy": bool(noise),
        "noise": noise,
    }
