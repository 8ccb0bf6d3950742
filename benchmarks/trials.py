"""Measure what a local-mode trial costs in addition to its training, on this machine and its own Ray.

`benchmarks/trials.py [--trials N] [--at-once N] [--epochs N] [--dir DIR]`: N tiny fine-tunes on the built-in data,
through `generate`. A trial's overhead is its time from its start in Tune until it is stored, minus the time in
training; the first of each actor includes imports and is reported separately. The stage's overhead includes the start
of the actors and the gaps between trials. What is measured is announced first, on stderr; the last line, on stdout, is
one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

GOAL_S = 1.0
SPREAD_LIMIT = 0.10


def main() -> None:
    """Announce what is measured, measure it, and print one JSON line."""
    options = parse_options()
    say(f"{options.trials} fine-tunes of resnet18 on built-in data, {options.at_once} at once, epochs={options.epochs}")
    say(f"goal: at most {GOAL_S:g} s of overhead for each trial after its actor's first")
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="bench_trials-") as folder:
        rows, environment = run(Path(folder), options)
    figures = measure(rows, environment, options)
    if figures["overhead_spread"] > SPREAD_LIMIT:
        say(f"unsteady: the overheads spread over {figures['overhead_spread']:.0%} of their median; was it busy?")
    sys.stdout.write(json.dumps(figures) + "\n")


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=16, help="fine-tunes")
    parser.add_argument("--at-once", type=int, default=1, help="how many of them run at a time, each in its own actor")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each")
    parser.add_argument("--dir", type=Path, help="folder to work in; the system's temporary one by default")
    return parser.parse_args()


def say(text: str) -> None:
    """Write progress to stderr."""
    sys.stderr.write(f"trials: {text}\n")


def run(folder: Path, options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows and the environment that `raysnap generate` writes."""
    from raysnap.cli.app import main as raysnap
    from raysnap.config.jobs import GenerateConfig
    from raysnap.config.load import dump_yaml

    config = GenerateConfig.model_validate(
        {
            "run_dir": folder / "run",
            "store": folder / "store",
            "data_dir": folder / "data",
            "datasets": ["shapes-shape-a"],
            "num_snapshots": options.trials,
            "image_size": 64,
            "shapes": {"image_size": 72, "num_train": 256, "num_val": 64, "num_test": 64},
            "train": {"epochs": options.epochs, "batch_size": 32},
            "retrain": {"distribution": "fixed", "values": [1]},
            "resources": {"max_concurrent": options.at_once},
        }
    )
    config_path = folder / "job.yaml"
    config_path.write_text(dump_yaml(config))
    stdout = os.dup(1)
    os.dup2(2, 1)  # the job's own summary is no figure of this
    try:
        exit_code = raysnap(["generate", str(config_path), "--json"])
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
    if exit_code:
        sys.exit(f"trials: the job ended with exit code {exit_code}")
    rows = [json.loads(line) for line in (config.run_dir / "results.jsonl").read_text().splitlines()]
    return rows, json.loads((config.run_dir / "env.json").read_text())


def measure(rows: list[dict[str, Any]], environment: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Return each trial's overhead in the order they ended, and the share of time that was training."""
    overheads_s = [row["overhead_s"] for row in rows]
    later = sorted(overheads_s[options.at_once :])
    quartiles = statistics.quantiles(later, n=4)
    parts = {name: statistics.median(row["timings_s"][name] for row in rows) for name in rows[0]["timings_s"]}
    trained_s = sum(row["wall_s"] - row["overhead_s"] for row in rows)
    stage_s = environment["stages_s"]["trials"]
    return {
        "num_trials": len(rows),
        "num_at_once": options.at_once,
        "num_cpus": environment["num_cpus"],
        "first_overhead_s": max(overheads_s[: options.at_once]),
        "overhead_s": statistics.median(later),
        "largest_overhead_s": later[-1],
        "overhead_spread": (quartiles[2] - quartiles[0]) / statistics.median(later),
        "meets_goal": statistics.median(later) <= GOAL_S,
        "training_share": trained_s / sum(row["wall_s"] for row in rows),
        "median_timings_s": parts,
        "stage_s": stage_s,
        "stage_overhead_per_trial_s": (stage_s * options.at_once - trained_s) / len(rows),
        "overheads_s": overheads_s,
    }


if __name__ == "__main__":
    main()
