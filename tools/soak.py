"""Run every kind of command on one store at random, two at a time, and kill some: nothing is lost, nothing grows.

    .venv/bin/python tools/soak.py [--minutes 90] [--kill-rate 0.01] [--seed N] [--dir DIR]

Two threads take commands at random: search, generate and finetune with a few tiny trials, synthesize, add, export,
predict, verify, du, gc, rm. A command is killed at a random moment with the given probability; a killed job is resumed.
Between commands one process that stays asks a question through the API: its memory and descriptors are counted.
In the end the store must verify, every snapshot that a row names and nobody deleted must be there, and every trial must
have one row. Prints one JSON document; exit code 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SIZES = {"image_size": 36, "num_train": 32, "num_val": 16, "num_test": 16}
TASKS = [f"shapes-{kind}-{letter}" for kind in ("shape", "texture", "orientation", "colour") for letter in "ab"]
TYPICAL_S = {"generate": 30.0, "finetune": 40.0}
ALLOWED = {0, 2, 130, -signal.SIGKILL}
JOBS = ("generate", "finetune", "synthesize")
KINDS = ("search", "search", "search", *JOBS, "add", "export", "predict", "verify", "du", "gc", "rm", "ls")
GROWTH = 1.1
SETTLING_SHARE = 0.25  # of the run, in which the process that stays may still fill its caches


@dataclass
class Soak:
    """One run: its folders, what was done, what went wrong."""

    folder: Path
    kill_rate: float
    until_s: float
    done: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    deleted: set[str] = field(default_factory=set)
    num_kills: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    number: int = 0

    @property
    def store(self) -> Path:
        """The store that all commands share."""
        return self.folder / "store"

    def work(self, seed: int) -> None:
        """Take commands until the time is over."""
        rng = random.Random(seed)
        while time.monotonic() < self.until_s:
            kind = rng.choice(KINDS)
            with self.lock:
                self.number += 1
                number = self.number
            try:
                self.take(kind, number, rng)
            except Exception as error:  # noqa: BLE001 - whatever goes wrong here is a result
                self.fault(f"{kind}: {error!r}")

    def take(self, kind: str, number: int, rng: random.Random) -> None:
        """Run one command of a kind; resume a job that was killed."""
        arguments = self.arguments(kind, number, rng)
        if arguments is None:
            return
        is_killed = rng.random() < self.kill_rate
        code, out, err = self.run(arguments, rng.uniform(1, TYPICAL_S.get(kind, 8.0)) if is_killed else None)
        if code == -signal.SIGKILL and kind in JOBS:
            begun = (self.folder / "runs" / str(number) / "config.yaml").exists()
            code, out, err = self.run([*arguments, "--resume"] if begun else arguments, None)
        # A trial whose base `rm` took away fails, and is named.
        is_without_base = code == 1 and kind in JOBS and any(snapshot in err for snapshot in self.deleted)
        if not (code in ALLOWED or is_without_base) or "Traceback" in err:
            self.fault(f"exit {code}: raysnap {' '.join(arguments)}: {err.strip()[-300:]}")
        if kind == "rm" and code == 0:
            self.deleted |= set(json.loads(out)["removed"])
        with self.lock:
            self.done[f"{kind} {code}"] += 1

    def run(self, arguments: list[str], kill_after_s: float | None) -> tuple[int, str, str]:
        """Run a command, and kill it and all that it started where that is asked for."""
        process = subprocess.Popen(
            [sys.executable, "-m", "raysnap", *arguments],
            cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            out, err = process.communicate(timeout=kill_after_s)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)  # the command alone: what it started has to notice
            with self.lock:
                self.num_kills += 1
            out, err = process.communicate()
        return process.returncode, out, err

    def fault(self, text: str) -> None:
        """Note what went wrong."""
        with self.lock:
            self.faults.append(text)
        sys.stderr.write(f"soak: {text}\n")

    def snapshots(self) -> list[str]:
        """Return the ids of the snapshots that are there now."""
        return sorted(path.stem for path in (self.store / "snapshots").glob("*.json"))

    def arguments(self, kind: str, number: int, rng: random.Random) -> list[str] | None:
        """Return a command of a kind, with a number of its own; None where there is nothing yet that it could take."""
        run_dir, task, store = f"runs/{number}", rng.choice(TASKS), ["--store", "store"]
        snapshots, files = self.snapshots(), sorted((self.folder / "exported").glob("*.safetensors"))
        one = [rng.choice(snapshots)] if snapshots else []
        seed = f"seed={rng.randrange(1000)}"
        match kind:
            case "generate":
                return ["generate", "soak.yaml", f"run_dir={run_dir}", f"datasets=[{task}]", seed]
            case "synthesize":
                return ["synthesize", "synthetic.yaml", f"run_dir={run_dir}", seed]
            case "finetune" if one:
                shown = ["--data", task, *store, "--preset", "quick", "--shortlist", "1", "--run-dir", run_dir]
                return ["finetune", *shown, "--name", f"model-{number}", "train.epochs=2", "num_samples=1"]
            case "search":
                method = rng.choice(["auto", "nested", "shared", "alsatian"])
                return ["search", *store, "--data", task, "--method", method, "--json"]
            case "add" if files:
                return ["store", "add", str(rng.choice(files)), "--arch", "mobilenet_v3_small", *store]
            case "export" if one:
                return ["store", "export", *one, "--to", f"exported/{number}.safetensors", *store]
            case "predict" if one:
                data = f"data/{task}/test"
                return ["predict", "--model", *one, *store, "--data", data, "--out", f"predictions/{number}.csv"]
            case "rm" if one:
                return ["store", "rm", *one, *store, "--json"]
            case "verify" | "du" | "gc" | "ls":
                return ["store", kind, *store]
        return None


def main() -> int:
    """Run the commands, check what they left, print what was found; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=90.0)
    parser.add_argument("--kill-rate", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path, help="folder to work in; the system's temporary one by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-", dir=options.dir) as folder:
        soak = Soak(Path(folder), options.kill_rate, time.monotonic() + 60 * options.minutes)
        prepare(soak)
        threads = [threading.Thread(target=soak.work, args=(options.seed + number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        resident = stay(soak)
        for thread in threads:
            thread.join()
        found = {"minutes": options.minutes, "kills": soak.num_kills, "commands": dict(sorted(soak.done.items()))}
        found |= check(soak) | resident | {"faults": soak.faults}
    sys.stdout.write(json.dumps(found) + "\n")
    return int(bool(soak.faults))


def prepare(soak: Soak) -> None:
    """Write the jobs' files, draw the datasets and make the first snapshots."""
    from raysnap.config.parts import ShapesConfig
    from raysnap.datasets.dataset import open_dataset

    common = "store: store\narchitectures: [mobilenet_v3_small]\nimage_size: 32\n"
    trained = f"shapes: {json.dumps(SIZES)}\nbase: {{weights: random}}\ntrain: {{epochs: 1, batch_size: 16}}\n"
    (soak.folder / "soak.yaml").write_text(f"{common}{trained}num_snapshots: 2\nretrain: {{distribution: uniform}}\n")
    (soak.folder / "synthetic.yaml").write_text(f"{common}num_snapshots: 3\n")
    for name in ("exported", "predictions"):
        (soak.folder / name).mkdir()
    rng = random.Random(0)
    for task in TASKS:
        open_dataset(task, soak.folder / "data", ShapesConfig(**SIZES))
    for number, kind in enumerate(("generate", "synthesize")):
        arguments = soak.arguments(kind, -number, rng) or []
        code, _, err = soak.run(arguments, None)
        if code:
            sys.exit(f"soak: raysnap {' '.join(arguments)}: exit code {code}: {err[-500:]}")


def stay(soak: Soak) -> dict[str, Any]:
    """Ask the store questions through the API until the time is over; return how memory and descriptors went."""
    from raysnap.config.parts import ShapesConfig
    from raysnap.config.search_options import SearchOptions
    from raysnap.search import search

    rng, samples = random.Random(1), []
    began_s = time.monotonic()
    options = SearchOptions(data_dir=soak.folder / "data", shapes=ShapesConfig(**SIZES))
    while time.monotonic() < soak.until_s:
        try:
            search(soak.store, soak.folder / "data" / "shapes-shape-a", options)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong here is a result
            soak.fault(f"search in one process: {error!r}")
        samples.append((time.monotonic(), rss_bytes(), len(list(Path("/proc/self/fd").iterdir()))))
        time.sleep(rng.uniform(0, 20))
    settled_s = began_s + SETTLING_SHARE * (soak.until_s - began_s)
    settled = [sample for sample in samples if sample[0] >= settled_s] or samples
    half = max(1, len(settled) // 2)
    bytes_of, files_of = (
        [[one[index] for one in part] for part in (settled[:half], settled[-half:])] for index in (1, 2)
    )
    growth = [statistics.median(after) / statistics.median(before) for before, after in (bytes_of, files_of)]
    if max(growth) > GROWTH:
        soak.fault(f"the process that stayed grew: memory {growth[0]:.2f} times, descriptors {growth[1]:.2f} times")
    return {
        "questions_of_one_process": len(samples),
        "memory_growth": round(growth[0], 3),
        "descriptor_growth": round(growth[1], 3),
        "last_bytes": samples[-1][1],
        "last_descriptors": samples[-1][2],
    }


def rss_bytes() -> int:
    """Return how much memory this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def check(soak: Soak) -> dict[str, Any]:
    """Return what the runs and the store hold in the end; what is lost or left is a fault."""
    code, _, err = soak.run(["store", "verify", "--store", "store"], None)
    if code:
        soak.fault(f"the store does not verify: {err[-500:]}")
    for kind in sorted(set(KINDS) - {command.partition(" ")[0] for command in soak.done if command.endswith(" 0")}):
        soak.fault(f"{kind}: never ended with exit code 0")
    there, num_rows, lost = set(soak.snapshots()), 0, 0
    for results in soak.folder.glob("runs/**/results.jsonl"):
        rows = [json.loads(line) for line in results.read_text().splitlines()]
        num_rows += len(rows)
        twice = [name for name, count in Counter(row["trial"] for row in rows).items() if count > 1]
        if twice:
            soak.fault(f"{results}: two rows of {twice[0]}")
        for row in rows:
            if row["status"] == "done" and row.get("snapshot") and row["snapshot"] not in there | soak.deleted:
                lost += 1
                soak.fault(f"{results}: snapshot {row['snapshot'][:12]} of {row['trial']} is lost")
    return {"snapshots": len(there), "deleted": len(soak.deleted), "rows": num_rows, "lost": lost}


if __name__ == "__main__":
    sys.exit(main())
