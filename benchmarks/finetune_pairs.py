"""Compare `raysnap finetune` with the same time spent on fine-tuning the base alone, in pairs that differ in that only.

`benchmarks/finetune_pairs.py --store S --base NAME --data D [--draws 5] [--time-budget 180] [--dir DIR] [KEY=VALUE]`.
Draw k trains with seed k, which also says what is held out and drawn. Each run has a copy of the store to itself, so
that no draw knows what came of another. Who goes first changes from draw to draw. What is measured is announced first,
on stderr; the last line, on stdout, is one JSON document with the test accuracy of each kept model.
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

SIDES = ("found", "base")


def main() -> int:
    """Run the pairs and print one JSON line; exit code 1 where a run failed or the base was as good."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--base", required=True, help="the snapshot that would be taken without a search")
    parser.add_argument("--data", required=True)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--first-draw", type=int, default=0)
    parser.add_argument("--time-budget", type=float, default=180.0, help="seconds of each run")
    parser.add_argument("--dir", type=Path, help="where runs and copies of the store go; deleted afterwards")
    parser.add_argument("overrides", nargs="*", help="keys of the finetune's configuration, for both sides")
    options = parser.parse_args()
    say(f"{options.draws} pairs of {options.time_budget:.0f} s each on {options.data}: test accuracy of the kept model")
    pairs = []
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="finetune_pairs-") as place:
        for draw in range(options.first_draw, options.first_draw + options.draws):
            sides = SIDES if draw % 2 == 0 else SIDES[::-1]
            found = {side: run(options, Path(place), draw, side) for side in sides}
            pairs.append({"draw": draw} | found)
            say(f"draw {draw}: found {found['found']['test_accuracy']}, base {found['base']['test_accuracy']}")
    gains = [pair["found"]["test_accuracy"] - pair["base"]["test_accuracy"] for pair in pairs]
    figures = {
        "pairs": pairs,
        "mean_gain": statistics.fmean(gains),
        "num_better": sum(gain > 0 for gain in gains),
        "num_worse": sum(gain < 0 for gain in gains),
        "load": os.getloadavg()[0],
    }
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0 if figures["mean_gain"] > 0 else 1


def say(text: str) -> None:
    """Write progress to stderr."""
    sys.stderr.write(f"finetune_pairs: {text}\n")


def run(options: argparse.Namespace, place: Path, draw: int, side: str) -> dict[str, object]:
    """Return what one run kept, and how long it took."""
    folder = place / f"{draw}-{side}"
    store = shutil.copytree(options.store, folder / "store")
    command = [sys.executable, "-m", "raysnap", "finetune", "--data", options.data, "--store", str(store), "--json"]
    command += ["--time-budget", f"{options.time_budget:.0f}s", "--run-dir", str(folder / "run"), f"seed={draw}"]
    command += [*(["--from", options.base] if side == "base" else []), *options.overrides]
    started_s = time.monotonic()
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    wall_s = time.monotonic() - started_s
    if not finished.stdout:
        raise SystemExit(f"{' '.join(command)}: exit code {finished.returncode}\n{finished.stderr}")
    best = json.loads(finished.stdout)["best"]
    if best is None:
        raise SystemExit(f"{' '.join(command)}: kept nothing; give it more than {options.time_budget:.0f} s")
    shutil.rmtree(folder)
    return {
        "test_accuracy": best["metrics"]["test_accuracy"],
        "val_accuracy": best["metrics"]["val_accuracy"],
        "start": best["start"],
        "recipe": best["recipe"],
        "wall_s": round(wall_s, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
