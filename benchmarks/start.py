"""Measure how long whole commands take from their start to their exit, beside those of another checkout.

`benchmarks/start.py --store STORE --data DATASET [--beside CHECKOUT] [--repeats N]`; what is measured is announced
first, on stderr; the last line, on stdout, is one JSON document. Commands that are compared take turns, so that a busy
machine affects both; figures are medians of the repeats: wall seconds, and the CPU seconds of the process, which a busy
machine changes less. The search's features come from the cache, which an uncounted run fills, so that what is left is
start, probes and exit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Announce what is measured, measure it, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True, help="a model store with a snapshot or more")
    parser.add_argument("--data", type=Path, required=True, help="a dataset to search for: the path of an ImageFolder")
    parser.add_argument("--beside", type=Path, help="another checkout, measured in turn with this one")
    parser.add_argument("--repeats", type=int, default=5, help="counted runs of each command")
    options = parser.parse_args()
    checkouts = {"here": ROOT} | ({"beside": options.beside.resolve()} if options.beside else {})
    with tempfile.TemporaryDirectory() as folder:
        store, added = options.store.resolve(), Path(folder) / "added"
        weights = _export(store, Path(folder))
        commands = {
            "help": ["--help"],
            "store ls": ["store", "ls", "--store", str(store)],
            "store add": ["store", "add", *weights, "--store", str(added)],
            "search": ["search", "--store", str(store), "--data", str(options.data.resolve()), "--json"],
        }
        figures: dict[str, Any] = {}
        for name, arguments in commands.items():
            sys.stderr.write(f"{name}: {options.repeats} runs each of {', '.join(checkouts)}, in turn\n")
            figures[name] = _compare(checkouts, arguments, options.repeats, added)
            sys.stderr.write(f"  {json.dumps(figures[name])}\n")
    sys.stdout.write(json.dumps({"repeats": options.repeats, "seconds": figures}) + "\n")


def _export(store: Path, folder: Path) -> list[str]:
    """Export a snapshot as a file; return what `store add` needs to add it."""
    found = json.loads(_capture(["store", "ls", "--store", str(store), "--json"]))["snapshots"][0]
    path = folder / "weights.safetensors"
    _capture(["store", "export", found["id"], "--store", str(store), "--to", str(path)])
    return [str(path), "--arch", found["architecture"], "--name", "added"]


def _capture(arguments: list[str]) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "raysnap", *arguments], env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def _compare(checkouts: dict[str, Path], arguments: list[str], repeats: int, added: Path) -> dict[str, Any]:
    """Return each checkout's median wall and CPU seconds; the first run of each is not counted."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in checkouts}
    for _ in range(repeats + 1):
        for name, checkout in checkouts.items():
            shutil.rmtree(added, ignore_errors=True)
            seconds[name].append(_time(checkout, arguments))
    medians: dict[str, Any] = {}
    for name, runs in seconds.items():
        walls_s, cpus_s = zip(*runs[1:], strict=True)
        medians[name] = {
            "wall_s": round(statistics.median(walls_s), 3), "cpu_s": round(statistics.median(cpus_s), 3)
        }  # fmt: skip
    if "beside" in medians:
        medians["times_faster"] = {
            kind: round(medians["beside"][kind] / medians["here"][kind], 2) for kind in ("wall_s", "cpu_s")
        }
    return medians


def _time(checkout: Path, arguments: list[str]) -> tuple[float, float]:
    """Return the wall and CPU seconds of one command, from its start until it has ended."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    started_s = time.perf_counter()
    command = subprocess.Popen(
        [sys.executable, "-m", "raysnap", *arguments], env=environment, cwd=checkout, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(command.pid, 0)
    wall_s = time.perf_counter() - started_s
    command.returncode = os.waitstatus_to_exitcode(status)
    if command.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit code {command.returncode}")
    return wall_s, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
