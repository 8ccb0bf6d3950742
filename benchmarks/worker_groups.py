"""Measure how long a trial with several Train workers takes to start, against a plain TorchTrainer, on its own Ray.

`benchmarks/worker_groups.py [--workers N] [--repeats N]`: the plain trainer runs as often before the job of several
trials as after it. The first run of each is reported separately, as it starts processes that the others use too. The
plain trainer's loop only reports; a trial's time is that from its start until it is stored, minus its time in training.
What is measured is announced first, on stderr; the last line, on stdout, is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import ray
from ray import train
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from raysnap.config.jobs import GenerateConfig
from raysnap.jobs.generate import generate
from raysnap.runs.json_fields import read_rows
from raysnap.tune.driver import GROUP_ENVIRONMENT

OBJECT_STORE_BYTES = 256 * 2**20


def main() -> None:
    """Announce what is measured, measure it, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="Train workers of each trial")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, after the first")
    options = parser.parse_args()
    say(f"a trial with {options.workers} workers against a plain TorchTrainer with as many, {options.repeats} turns")
    os.environ.update(GROUP_ENVIRONMENT)
    ray.init(
        address="local",
        num_cpus=options.workers,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    with tempfile.TemporaryDirectory(prefix="bench_groups-") as folder:
        before = [plain_s(Path(folder), number, options.workers) for number in range(options.repeats + 1)]
        trials = trials_s(Path(folder), options.repeats + 1, options.workers)
        after = [plain_s(Path(folder), -number, options.workers) for number in range(1, options.repeats + 1)]
    ray.shutdown()
    seconds = {"plain": [*before, *after], "trial": trials}
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    document = {
        "num_workers": options.workers,
        "first_s": {name: times[0] for name, times in seconds.items()},
        "median_s": medians,
        "all_s": seconds,
        "ratio": medians["trial"] / medians["plain"],
    }
    sys.stdout.write(json.dumps(document) + "\n")


def say(text: str) -> None:
    """Write progress to stderr."""
    sys.stderr.write(f"worker_groups: {text}\n")


def plain_s(folder: Path, number: int, num_workers: int) -> float:
    """Return the seconds that a TorchTrainer takes whose workers report once."""

    def train_fn_per_worker() -> None:
        train.report({"loss": 0.0})

    started_s = time.perf_counter()
    TorchTrainer(
        train_fn_per_worker,
        scaling_config=ScalingConfig(num_workers=num_workers, resources_per_worker={"CPU": 1}),
        run_config=train.RunConfig(name=f"plain-{number}", storage_path=str(folder)),
    ).fit()
    return time.perf_counter() - started_s


def trials_s(folder: Path, num_trials: int, num_workers: int) -> list[float]:
    """Return the seconds that each trial of a job takes in addition to its training and evaluation."""
    config = GenerateConfig.model_validate(
        {
            "run_dir": folder / "run",
            "store": folder / "store",
            "data_dir": folder / "data",
            "datasets": ["shapes-shape-a"],
            "num_snapshots": num_trials,
            "image_size": 32,
            "shapes": {"image_size": 36, "num_train": 32, "num_val": 8, "num_test": 8},
            "train": {"epochs": 1, "batch_size": 16},
            "retrain": {"distribution": "fixed", "values": [0]},
            "resources": {"num_workers": num_workers},
        }
    )
    generate(config)
    return [row["overhead_s"] for row in read_rows(config.run_dir / "results.jsonl")]


if __name__ == "__main__":
    main()
