"""Measure a search with one worker of one thread against workers of one thread each, on this machine and its own Ray.

`benchmarks/workers.py --store STORE --data DATA [--workers N] [--num-train N] [--num-test N] [--method M] [--repeats
N]`: the pixels are decoded first; both take turns. The start of Ray and its actors is reported separately. What is
measured is announced first, on stderr; the last line, on stdout, is one JSON document, with the ratio of median times.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
from pathlib import Path
from typing import get_args

import ray
import torch
from threadpoolctl import threadpool_limits

from raysnap.config.choices import Method
from raysnap.config.search_options import SearchOptions
from raysnap.search import SearchResult, search
from raysnap.search.candidates import find_candidates
from raysnap.search.engine.setup import Setup
from raysnap.store.store import Store

GOAL_SPEEDUP = 1.8
SPREAD_LIMIT = 0.10
OBJECT_STORE_BYTES = 512 * 2**20


def main() -> None:
    """Announce what is measured, measure it, and print one JSON line."""
    options = parse_options()
    say(f"{options.method} over {options.store}, 1 worker of 1 thread against {options.workers} of 1 thread each")
    say(f"goal with 2 workers: {GOAL_SPEEDUP:g} x; taking turns, {options.repeats} times")
    torch.set_num_threads(1)
    ray.init(
        address="local",
        num_cpus=options.workers,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    decode(options)
    seconds: dict[int, list[float]] = {1: [], options.workers: []}
    results: dict[int, SearchResult] = {}
    with threadpool_limits(1):
        for _ in range(options.repeats):
            for workers, times in seconds.items():
                result = results[workers] = run(options, workers)
                times.append(result.timings_s["total"] - result.timings_s.get("start_workers", 0.0))
                say(f"{workers} workers: {times[-1]:.2f} s")
    ray.shutdown()
    one, many = results[1], results[options.workers]
    for workers, times in seconds.items():
        if max(times) - min(times) > SPREAD_LIMIT * statistics.median(times):
            say(f"unsteady: with {workers} workers the times spread by more than {SPREAD_LIMIT:.0%}; was it busy?")
    figures = {
        "num_candidates": one.num_candidates,
        "workers": options.workers,
        "one_s": seconds[1],
        "many_s": seconds[options.workers],
        "speedup": statistics.median(seconds[1]) / statistics.median(seconds[options.workers]),
        "goal_speedup": GOAL_SPEEDUP,
        "start_workers_s": many.timings_s["start_workers"],
        "largest_score_difference": max(
            abs(left.score - right.score)
            for left, right in zip(
                *(sorted(result.ranking, key=lambda entry: entry.snapshot) for result in (one, many)), strict=True
            )
        ),
        "one": {"timings_s": one.timings_s, "work": one.work},
        "many": {"timings_s": many.timings_s, "work": many.work},
    }
    sys.stdout.write(json.dumps(figures) + "\n")


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--data", required=True, help="a dataset's name in --data-dir, or the path of an ImageFolder")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--method", choices=get_args(Method), default="shared")
    parser.add_argument("--num-train", type=int, default=None)
    parser.add_argument("--num-test", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=1)
    return parser.parse_args()


def decode(options: argparse.Namespace) -> None:
    """Fill the pixel cache."""
    candidates = find_candidates(Store.open(options.store), None, None)
    counts = {"num_train": options.num_train, "num_test": options.num_test}
    Setup(options.store, options.data, SearchOptions(data_dir=options.data_dir, **counts)).open_items(candidates)


def run(options: argparse.Namespace, workers: int) -> SearchResult:
    """Search once, without a feature cache."""
    return search(
        options.store,
        options.data,
        data_dir=options.data_dir,
        method=options.method,
        num_train=options.num_train,
        num_test=options.num_test,
        workers=workers,
    )


def say(line: str) -> None:
    """Write progress to stderr."""
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    main()
