"""Measure all search methods side by side on one store: time, its lower bound, work, and the winner.

`benchmarks/search.py [--architecture NAME] [--snapshots N] [--distribution NAME] [--base WEIGHTS] [--store STORE]
[--dataset TASK] [--train N] [--test N] [--image-size PX] [--repeats N] [--warmups N] [--threads N] [--device NAME]
[--precision NAME] [--proxy NAME] [--methods A,B] [--dir DIR]`; what is measured is announced first, on stderr; the last
line, on stdout, is one JSON document. Without a store the benchmark synthesises one; that and the dataset are made in
DIR where they are missing, and kept. Methods take turns, after their warm-ups; times are medians, with the
interquartile range divided by the median. The bound is what the same block-item passes, bytes and decoding would take
at the best speed at which each block, each read and the decoder ran.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

import torch
from threadpoolctl import threadpool_limits

from raysnap.config.choices import AskedMethod, Precision, Proxy
from raysnap.config.jobs import SynthesizeConfig
from raysnap.config.parts import BaseWeights, RetrainConfig, ShapesConfig
from raysnap.datasets.text.words import TASKS as WORDS
from raysnap.jobs.synthesize import synthesize
from raysnap.models.block_facts import block_shapes
from raysnap.search import SearchResult, search
from raysnap.training.trial import slug

SPREAD_LIMIT = 0.10
# `nested` twice: as it is by default, and with all items.
SETTINGS = {method: {"method": method} for method in get_args(AskedMethod)} | {
    "nested_0": {"method": "nested", "tolerance": 0.0}
}


def main() -> None:
    """Announce what is measured, measure it, and print one JSON line."""
    options = parse_options()
    for line in (
        f"search of {describe_snapshots(options)}, proxy {options.proxy}",
        f"  for {describe_items(options)}",
        f"  on {device_name(options.device)}, {options.threads} threads; pixels and blocks warm",
        f"medians of {options.repeats} repeats in turns, after {options.warmups} warm-ups; nothing else should run",
    ):
        say(line)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="bench_search-") as temporary, threadpool_limits(options.threads):
        folder = Path(options.dir or temporary)
        store = make_store(options, folder)
        results = measure(options, folder, store)
    figures = {
        **facts(options),
        "proxy": options.proxy,
        "device": device_name(options.device),
        "num_threads": options.threads,
        "torch": torch.__version__,
        "precision": next(iter(results.values()))[0].precision,
        "methods": summarise(options, results),
    }
    sys.stdout.write(json.dumps(figures) + "\n")


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_question(parser, snapshots=16, image_size=224, train=320, test=80)
    parser.add_argument("--repeats", type=int, default=3, help="timed searches of each method")
    parser.add_argument("--warmups", type=int, default=1, help="searches of each method before these, not counted")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch and BLAS")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where blocks run")
    parser.add_argument("--precision", choices=get_args(Precision), default="auto", help="what blocks compute in")
    parser.add_argument("--proxy", choices=get_args(Proxy), default="linear", help="the probe")
    parser.add_argument("--methods", default=",".join(SETTINGS), help="a list with commas")
    options = parser.parse_args()
    unknown = set(options.methods.split(",")) - SETTINGS.keys()
    if unknown:
        parser.error(f"--methods: expected some of {', '.join(SETTINGS)}, found {', '.join(sorted(unknown))}")
    return options


def add_question(parser: argparse.ArgumentParser, *, snapshots: int, image_size: int, train: int, test: int) -> None:
    """Add the options that say what is searched, and for which items."""
    parser.add_argument("--architecture", default="resnet18", help="a torchvision builder's name")
    parser.add_argument("--snapshots", type=int, default=snapshots, help="synthetic snapshots, the base among them")
    parser.add_argument("--distribution", default="twenty_five_percent", help="of their retrain indices")
    parser.add_argument("--base", default="random", help="weights of their base, as `base.weights` of a job")
    parser.add_argument("--store", type=Path, help="a store of that architecture to search instead of synthetic ones")
    parser.add_argument("--dataset", default="shapes-texture-b", help="the built-in task that starts are wanted for")
    parser.add_argument("--image-size", type=int, default=image_size, help="edge of the images, in pixels")
    parser.add_argument("--train", type=int, default=train, help="train items")
    parser.add_argument("--test", type=int, default=test, help="test items")
    parser.add_argument("--dir", type=Path, help="folder for what is made, kept; else a temporary one")


def describe_snapshots(options: argparse.Namespace) -> str:
    """Describe the candidates."""
    if options.store:
        return f"the snapshots of {options.store}"
    return f"{options.snapshots} synthetic {options.architecture} at {options.distribution} of the base {options.base}"


def describe_items(options: argparse.Namespace) -> str:
    """Describe the items of the target task."""
    unit = "tokens" if options.dataset in WORDS else "px"
    return f"{options.train} + {options.test} items of {options.dataset} at {options.image_size} {unit}"


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """Return the question, for the JSON document."""
    made = {"num_snapshots": options.snapshots, "distribution": options.distribution, "base": options.base}
    return {
        "architecture": options.architecture,
        **({"store": str(options.store)} if options.store else made),
        "dataset": options.dataset,
        "num_train": options.train,
        "num_test": options.test,
        "image_size": options.image_size,
    }


def say(text: str) -> None:
    """Write progress to stderr."""
    sys.stderr.write(f"search: {text}\n")


def device_name(device: str) -> str:
    """Return the device's name."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return models[0].split(":")[1].strip() if models else "cpu"


def make_store(options: argparse.Namespace, folder: Path) -> Path:
    """Return the store of the options' snapshots; make a synthetic one where it is missing."""
    if options.store:
        return options.store
    made_of = (options.architecture, options.snapshots, options.distribution, slug(options.base), options.image_size)
    name = "-".join(map(str, made_of))
    run_dir = folder / f"{name}-run"
    config = SynthesizeConfig(
        run_dir=run_dir,
        store=folder / name,
        architectures=(options.architecture,),
        num_snapshots=options.snapshots,
        image_size=options.image_size,
        retrain=RetrainConfig(distribution=options.distribution),
        base=BaseWeights(weights=options.base),
    )
    synthesize(config, resume=run_dir.exists(), on_progress=lambda *progress: None)
    return config.store


def measure(options: argparse.Namespace, folder: Path, store: Path) -> dict[str, list[SearchResult]]:
    """Time the searches of each setting, in turns."""
    shapes = ShapesConfig(
        image_size=options.image_size + options.image_size // 7,
        num_train=options.train,
        num_val=options.test,
        num_test=8,
    )
    results: dict[str, list[SearchResult]] = {name: [] for name in options.methods.split(",")}
    for repeat in range(1 - options.warmups, options.repeats + 1):
        for name, found in results.items():
            result = search(
                store,
                options.dataset,
                **SETTINGS[name],
                proxy=options.proxy,
                num_train=options.train,
                num_test=options.test,
                image_size=options.image_size,
                data_dir=folder / f"data-{options.image_size}-{options.train}-{options.test}",
                shapes=shapes,
                device=options.device,
                precision=options.precision,
            )
            if repeat > 0:
                found.append(result)
            total_s = result.timings_s["total"]
            say(f"repeat {repeat}: {name} {total_s:.2f} s, {total_s / result.bound_s:.2f} x its bound")
    return results


def summarise(options: argparse.Namespace, results: dict[str, list[SearchResult]]) -> dict[str, dict[str, Any]]:
    """Summarise each setting; regret is the best score on all items minus its winner's."""
    shapes = block_shapes(options.architecture, options.image_size)
    model_flops = sum(shape.flops for shape in shapes[:-1])
    full = results.get("shared") or results.get("baseline")
    scores = {one.snapshot: one.score for one in full[0].ranking} if full else {}
    figures = {}
    for name, found in results.items():
        times_s = [result.timings_s["total"] for result in found]
        if spread(times_s) > SPREAD_LIMIT:
            say(f"unsteady: the times of {name} spread by {spread(times_s):.0%} of the median; the machine was busy")
        typical = sorted(found, key=lambda result: result.timings_s["total"])[len(found) // 2]
        winner = typical.ranking[0]
        figures[name] = {
            "total_s": statistics.median(times_s),
            "spread": spread(times_s),
            "bound_s": typical.bound_s,
            "ratio": typical.timings_s["total"] / typical.bound_s,
            "timings_s": typical.timings_s,
            "image_forwards": typical.work["flops"] / model_flops,
            "block_bytes_read": typical.work["block_bytes_read"],
            "winner": winner.name,
            "score": winner.score,
            "regret": max(scores.values()) - scores[winner.snapshot] if scores else None,
        }
    return figures


def spread(times_s: list[float]) -> float:
    """Return the interquartile range divided by the median."""
    if len(times_s) < 2:
        return 0.0
    first, middle, third = statistics.quantiles(times_s, n=4, method="inclusive")
    return (third - first) / middle


if __name__ == "__main__":
    main()
