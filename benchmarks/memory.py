"""Measure a search under a bound on memory: its peak, its time, its ranking, beside reading each block once.

`benchmarks/memory.py [--architecture NAME] [--snapshots N] [--distribution NAME] [--image-size PX] [--train N] [--test
N] [--memory BYTES] [--method NAME] [--precision NAME] [--repeats N] [--threads N] [--cache cold|warm] [--bounded-only]
[--dir DIR]`; what is measured is announced first, on stderr; the last line, on stdout, is one JSON document. The store
and the dataset are made in DIR where they are missing, and kept. Each run is a process of its own, and runs take turns:
`libraries` searches one snapshot, and what it held beyond its plan is the libraries' own; `reads` reads, verifies and
prepares each block once, with the search's own readers; `bounded` and `unbounded` search. Cold: the store's files are
dropped from the page cache before each run. Peaks are the kernel's (VmHWM).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from threadpoolctl import threadpool_limits

from raysnap.bench.page_cache import drop
from raysnap.config.choices import Method, Precision
from raysnap.config.jobs import SynthesizeConfig
from raysnap.config.parts import RetrainConfig, ShapesConfig
from raysnap.humanize import bytes_text, parse_bytes
from raysnap.jobs.synthesize import synthesize
from raysnap.models.numerics import Numerics
from raysnap.search import search
from raysnap.search.candidates import find_candidates
from raysnap.search.engine.block_shelf import Shelf, pick_num_readers
from raysnap.search.engine.work import Work
from raysnap.search.plan.costs import block_key
from raysnap.search.plan.tree import build_tree
from raysnap.store.store import Store

DATASET = "shapes-texture-b"


def main() -> None:
    """Announce what is measured, measure it, and print one JSON line; or be one of the runs."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    if options.run:
        with threadpool_limits(options.threads):
            report = {"libraries": run_search, "bounded": run_search, "unbounded": run_search, "reads": run_reads}
            print(json.dumps(report[options.run](options)))  # noqa: T201 - what the process that started it reads
        return
    with tempfile.TemporaryDirectory(prefix="bench_memory-") as temporary:
        options.dir = options.dir or Path(temporary)
        store = make_store(options)
        objects = [path for path in (store / "objects").glob("*/*") if path.is_file()]
        num_bytes = sum(path.stat().st_size for path in objects)
        say(f"{options.snapshots} synthetic {options.architecture} at {options.distribution}, {bytes_text(num_bytes)}")
        say(f"{options.train} + {options.test} items at {options.image_size} px, {options.method}, {options.precision}")
        say(f"{options.threads} threads; files {options.cache}; each run a process; bound {bytes_text(options.memory)}")
        names = ["libraries", "reads", "bounded", *([] if options.bounded_only else ["unbounded"])]
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for repeat in range(1, options.repeats + 1):
            for name, found in runs.items():
                if options.cache == "cold":
                    drop(objects)
                found.append(start(name, options))
                one = found[-1]
                say(f"repeat {repeat}: {name} {one['total_s']:.1f} s, peak {bytes_text(one['peak_rss_bytes'])}")
        print(json.dumps(summarise(options, runs, num_bytes)))  # noqa: T201 - the result


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="resnet152", help="a torchvision builder's name")
    parser.add_argument("--snapshots", type=int, default=80, help="synthetic snapshots, the base among them")
    parser.add_argument("--distribution", default="uniform", help="of their retrain indices")
    parser.add_argument("--image-size", type=int, default=32, help="edge of the images, in pixels")
    parser.add_argument("--train", type=int, default=32, help="train items")
    parser.add_argument("--test", type=int, default=16, help="test items")
    parser.add_argument("--memory", type=parse_bytes, default=parse_bytes("3GiB"), help="the bound")
    parser.add_argument("--method", choices=get_args(Method), default="shared", help="the search method")
    parser.add_argument("--precision", choices=get_args(Precision), default="auto", help="what blocks compute in")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch and BLAS")
    parser.add_argument("--cache", choices=("cold", "warm"), default="cold", help="whether files are dropped before")
    parser.add_argument("--bounded-only", action="store_true", help="no search without the bound")
    parser.add_argument("--dir", type=Path, help="folder for what is made, kept; else a temporary one")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    return parser.parse_args()


def say(text: str) -> None:
    """Write progress to stderr."""
    sys.stderr.write(f"memory: {text}\n")


def store_path(options: argparse.Namespace) -> Path:
    """Return where the synthetic snapshots are."""
    name = f"{options.architecture}-{options.snapshots}-{options.distribution}-{options.image_size}"
    return Path(options.dir) / name


def make_store(options: argparse.Namespace) -> Path:
    """Make the synthetic snapshots where they are missing."""
    run_dir = store_path(options).with_suffix(".run")
    config = SynthesizeConfig(
        run_dir=run_dir,
        store=store_path(options),
        architectures=(options.architecture,),
        num_snapshots=options.snapshots,
        image_size=options.image_size,
        retrain=RetrainConfig(distribution=options.distribution),
    )
    synthesize(config, resume=run_dir.exists(), on_progress=lambda *progress: None)
    return config.store


def start(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run this file as one of the runs, in a process of its own, and return its report."""
    arguments = [
        f"--{key.replace('_', '-')}={value}"
        for key, value in vars(options).items()
        if key not in ("run", "bounded_only", "repeats")
    ]
    command = [sys.executable, __file__, *arguments, f"--run={name}"]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    report: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return report


def run_search(options: argparse.Namespace) -> dict[str, Any]:
    """Search, in this process."""
    one = Store.open(store_path(options)).manifests()[0].id
    started_s = time.perf_counter()
    result = search(
        store_path(options),
        DATASET,
        method=options.method,
        memory_bytes=None if options.run == "unbounded" else options.memory,
        where=f"id == '{one}'" if options.run == "libraries" else None,
        max_candidates=None,
        num_train=options.train,
        num_test=options.test,
        image_size=options.image_size,
        data_dir=Path(options.dir) / f"data-{options.image_size}-{options.train}-{options.test}",
        shapes=ShapesConfig(image_size=options.image_size, num_train=options.train, num_val=options.test, num_test=8),
        precision=options.precision,
    )
    total_s = time.perf_counter() - started_s
    return {
        "total_s": total_s,
        "cpu_s": time.process_time(),
        "peak_rss_bytes": peak_rss_bytes(),
        "rss_after_bytes": rss_bytes(),
        "planned_bytes": result.peak_memory_bytes,
        "block_bytes_read": result.work["block_bytes_read"],
        "ranking": [(one.snapshot, one.score) for one in result.ranking],
        "timings_s": result.timings_s,
        "precision": result.precision,
    }


def run_reads(options: argparse.Namespace) -> dict[str, Any]:
    """Read, verify and prepare each block once, and keep none."""
    store = Store.open(store_path(options))
    numerics = Numerics.for_inference(options.precision, torch.device("cpu"))
    tree = build_tree(find_candidates(store, None, options.image_size), sharing=True)
    work = Work()
    started_s = time.perf_counter()
    num_readers = pick_num_readers(tree.nodes, options.memory)
    with Shelf(partial(store.read_block, device=numerics.device), numerics, work, num_readers) as shelf:
        waiting = list({block_key(node): node for node in tree.nodes}.values())
        shelf.fetch(waiting[:8])
        for number, node in enumerate(waiting):
            shelf.fetch(waiting[number + 8 : number + 9])
            shelf.block(node, work)
            shelf.drop([block_key(node)])
    total_s = time.perf_counter() - started_s
    return {
        "total_s": total_s,
        "cpu_s": time.process_time(),
        "peak_rss_bytes": peak_rss_bytes(),
        "block_bytes_read": work.block_bytes_read,
    }


def peak_rss_bytes() -> int:
    """Return the most memory that this process had at once; getrusage would count its parent's peak before exec."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def rss_bytes() -> int:
    """Return the memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def summarise(options: argparse.Namespace, runs: dict[str, list[dict[str, Any]]], num_bytes: int) -> dict[str, Any]:
    """Return the medians, and how the bounded searches compare with the bound and the other runs."""
    own_bytes = max(one["peak_rss_bytes"] - one["planned_bytes"] for one in runs["libraries"])
    bounded = runs["bounded"]
    rankings = [one["ranking"] for name in ("bounded", "unbounded") for one in runs.get(name, [])]
    medians_s = {name: statistics.median(one["total_s"] for one in found) for name, found in runs.items()}
    peaks = {name: max(one["peak_rss_bytes"] for one in found) for name, found in runs.items()}
    return {
        "architecture": options.architecture,
        "num_snapshots": options.snapshots,
        "block_bytes": num_bytes,
        "num_train": options.train,
        "num_test": options.test,
        "image_size": options.image_size,
        "method": options.method,
        "precision": bounded[0]["precision"],
        "num_threads": options.threads,
        "cache": options.cache,
        "memory_bytes": options.memory,
        "libraries_bytes": own_bytes,
        "planned_bytes": bounded[0]["planned_bytes"],
        "peak_rss_bytes": peaks,
        "peak_over_libraries_bytes": peaks["bounded"] - own_bytes,
        "is_within_bound": peaks["bounded"] - own_bytes <= options.memory,
        "total_s": medians_s,
        "cpu_s": {name: statistics.median(one["cpu_s"] for one in found) for name, found in runs.items()},
        "over_reading_once": statistics.median(
            one["total_s"] / read["total_s"] for one, read in zip(bounded, runs["reads"], strict=True)
        ),
        "block_bytes_read": bounded[0]["block_bytes_read"],
        "rss_after_bytes": {name: max(one.get("rss_after_bytes", 0) for one in found) for name, found in runs.items()},
        "timings_s": bounded[-1]["timings_s"],
        "has_equal_rankings": all(ranking == rankings[0] for ranking in rankings),
    }


if __name__ == "__main__":
    main()
