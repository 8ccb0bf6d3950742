"""Measure what a local-mode trial costs in addition to its training, on this machine and its own Ray.

`benchmarks/trials.py [--trials N] [--at-once N] [--epochs N] [--tiny] [--kill-rate P] [--dir DIR]`: N small fine-tunes
on the built-in data, through `generate`. A trial's overhead is its time from its start in Tune until it is stored,
minus the time in training; the first of each process includes imports and is reported separately. The stage's overhead
includes the start of the processes and the gaps between trials. With many trials it also shows what grows with their
number: the overhead of the first and the last hundred, the memory of the driver and of Ray's control service, files.
What is measured is announced first, on stderr; the last line, on stdout, is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GOAL_S = 1.0
SPREAD_LIMIT = 0.10
WINDOW = 100
LOOK_EVERY_S = 0.5
MAX_FAILURES = 4  # a trial that starts again takes as long as twenty others: it may well be killed a second time
TRIAL_TITLE = re.compile(r"ray::(RaysnapTrial|run-trials)\b")
SIZES = {  # architecture, image_size, items in each split, batch size
    False: ("resnet18", 64, {"num_train": 256, "num_val": 64, "num_test": 64}, 32),
    True: ("mobilenet_v3_small", 32, {"num_train": 32, "num_val": 8, "num_test": 8}, 16),
}


def main() -> None:
    """Announce what is measured, measure it, and print one JSON line."""
    options = parse_options()
    architecture = SIZES[options.tiny][0]
    say(f"{options.trials} fine-tunes of {architecture} on built-in data, {options.at_once} at once, {options.epochs=}")
    if options.kill_rate:
        say(f"as each trial ends, one of the processes that train is killed with probability {options.kill_rate:g}")
    say(f"goal: at most {GOAL_S:g} s of overhead for each trial after its process's first")
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="bench_trials-") as folder:
        run_dir = Path(folder) / "run"
        watch = Watch(run_dir, options.kill_rate)
        rows, environment = run(Path(folder), options, watch)
        figures = measure(rows, environment, options) | watch.figures() | count_files(run_dir / "ray" / "trials", rows)
    if figures["overhead_spread"] > SPREAD_LIMIT:
        say(f"unsteady: the overheads spread over {figures['overhead_spread']:.0%} of their median; was it busy?")
    sys.stdout.write(json.dumps(figures) + "\n")


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=16, help="fine-tunes")
    parser.add_argument("--at-once", type=int, default=1, help="how many run at a time, each in its own process")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each")
    parser.add_argument("--tiny", action="store_true", help="the smallest network on 32 images, for many trials")
    parser.add_argument("--kill-rate", type=float, default=0.0, help="kills per trial that ended")
    parser.add_argument("--dir", type=Path, help="folder to work in; the system's temporary one by default")
    return parser.parse_args()


def say(text: str) -> None:
    """Write progress to stderr."""
    sys.stderr.write(f"trials: {text}\n")


@dataclass
class Watch:
    """Looks at the processes and the rows of a job while it runs, and kills some of those that train."""

    run_dir: Path
    kill_rate: float
    num_kills: int = 0
    trial_pids: set[int] = field(default_factory=set)
    samples: list[dict[str, float]] = field(default_factory=list)
    state_bytes: int = 0
    is_over: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        """Look until the job is over."""
        import ray  # noqa: F401, I001 - which brings psutil
        import psutil

        rng, num_before, me = random.Random(0), 0, psutil.Process()
        while not self.is_over.wait(LOOK_EVERY_S):
            memory: dict[str, float] = {"driver_bytes": me.memory_info().rss, "gcs_bytes": 0.0}
            training = []
            for process in me.children(recursive=True):
                try:
                    title = " ".join(process.cmdline())
                    if TRIAL_TITLE.match(title):
                        training.append(process)
                        self.trial_pids.add(process.pid)
                    elif "gcs_server" in title:
                        memory["gcs_bytes"] = process.memory_info().rss
                except psutil.Error:
                    continue
            state = [path.stat().st_size for path in self.run_dir.glob("ray/trials/*.json") if path.exists()]
            self.state_bytes = max(self.state_bytes, sum(state))
            num_rows = self.num_rows()
            self.samples.append({"s": time.perf_counter(), "num_rows": num_rows} | memory)
            for _ in range(num_rows - num_before):
                if training and rng.random() < self.kill_rate:
                    rng.choice(training).kill()
                    self.num_kills += 1
            num_before = num_rows

    def num_rows(self) -> int:
        """Return how many rows there are."""
        try:
            return (self.run_dir / "results.jsonl").read_bytes().count(b"\n")
        except OSError:
            return 0

    def figures(self) -> dict[str, Any]:
        """Return what was seen."""
        rows_from = min(WINDOW, self.samples[-1]["num_rows"] / 2)
        late = [sample for sample in self.samples if sample["num_rows"] >= rows_from]
        shown = self.samples[:: max(1, len(self.samples) // 20)]
        begun_s = self.samples[0]["s"]
        return {
            "num_processes": len(self.trial_pids),
            "num_kills": self.num_kills,
            "largest_state_bytes": self.state_bytes,
            "driver_bytes_per_trial": slope(late, "driver_bytes"),
            "gcs_bytes_per_trial": slope(late, "gcs_bytes"),
            "samples": [sample | {"s": round(sample["s"] - begun_s, 1)} for sample in shown],
        }


def slope(samples: list[dict[str, float]], name: str) -> float | None:
    """Return how a figure grows with the number of rows, by least squares."""
    rows = [sample["num_rows"] for sample in samples]
    if len(set(rows)) < 2:
        return None
    return statistics.linear_regression(rows, [sample[name] for sample in samples]).slope


def run(folder: Path, options: argparse.Namespace, watch: Watch) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows and the environment that `raysnap generate` writes."""
    from raysnap.cli.app import main as raysnap
    from raysnap.config.jobs import GenerateConfig
    from raysnap.config.load import dump_yaml

    architecture, image_size, num_items, batch_size = SIZES[options.tiny]
    config = GenerateConfig.model_validate(
        {
            "run_dir": folder / "run",
            "store": folder / "store",
            "data_dir": folder / "data",
            "architectures": [architecture],
            "datasets": ["shapes-shape-a"],
            "num_snapshots": options.trials,
            "image_size": image_size,
            "shapes": {"image_size": image_size + 8} | num_items,
            "train": {"epochs": options.epochs, "batch_size": batch_size},
            "retrain": {"distribution": "fixed", "values": [1]},
            "resources": {"max_concurrent": options.at_once, "max_failures": MAX_FAILURES if options.kill_rate else 1},
        }
    )
    config_path = folder / "job.yaml"
    config_path.write_text(dump_yaml(config))
    stdout = os.dup(1)
    os.dup2(2, 1)  # the job's own summary is no figure of this
    looking = threading.Thread(target=watch.look)
    looking.start()
    try:
        exit_code = raysnap(["generate", str(config_path), "--json"])
    finally:
        watch.is_over.set()
        looking.join()
        sys.stdout.flush()
        os.dup2(stdout, 1)
    if exit_code:
        sys.exit(f"trials: the job ended with exit code {exit_code}")
    rows = [json.loads(line) for line in (config.run_dir / "results.jsonl").read_text().splitlines()]
    return rows, json.loads((config.run_dir / "env.json").read_text())


def measure(rows: list[dict[str, Any]], environment: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Return each trial's overhead in the order they ended, and the share of time that was training.

    The growth of the loop, which does the same work in each trial, shows how much busier the machine was in the end.
    """
    overheads_s = [row["overhead_s"] for row in rows]
    later = sorted(overheads_s[options.at_once :])
    quartiles = statistics.quantiles(later, n=4)
    parts = {name: statistics.median(row["timings_s"][name] for row in rows) for name in rows[0]["timings_s"]}
    trained_s = sum(row["wall_s"] - row["overhead_s"] for row in rows)
    stage_s = environment["stages_s"]["trials"]
    window = min(WINDOW, len(rows) // 2)
    overhead_s, loop_s = (
        [statistics.median(values) for values in (every[options.at_once :][:window], every[-window:])]
        for every in (overheads_s, [row["timings_s"]["total"] for row in rows])
    )
    return {
        "num_trials": len(rows),
        "num_distinct_trials": len({row["trial"] for row in rows}),
        "num_done": sum(row["status"] == "done" for row in rows),
        "num_at_once": options.at_once,
        "num_cpus": environment["num_cpus"],
        "first_overhead_s": max(overheads_s[: options.at_once]),
        "overhead_s": statistics.median(later),
        "largest_overhead_s": later[-1],
        "overhead_spread": (quartiles[2] - quartiles[0]) / statistics.median(later),
        "meets_goal": statistics.median(later) <= GOAL_S,
        "overhead_of_first_and_last_s": overhead_s,
        "loop_of_first_and_last_s": loop_s,
        "overhead_growth": overhead_s[1] / overhead_s[0],
        "loop_growth": loop_s[1] / loop_s[0],
        "training_share": trained_s / sum(row["wall_s"] for row in rows),
        "median_timings_s": parts,
        "stage_s": stage_s,
        "stage_overhead_per_trial_s": (stage_s * options.at_once - trained_s) / len(rows),
        "overheads_s": overheads_s[:WINDOW],
    }


def count_files(ray_dir: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how many files Ray's folder holds for each trial, and how many beside them."""
    per_trial = [sum(path.is_file() for path in (ray_dir / row["trial"]).rglob("*")) for row in rows]
    return {
        "files_per_trial": statistics.mean(per_trial),
        "most_files_of_a_trial": max(per_trial),
        "num_other_files": sum(path.is_file() for path in ray_dir.iterdir()),
    }


if __name__ == "__main__":
    main()
