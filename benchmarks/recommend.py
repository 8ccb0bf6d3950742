"""Measure `raysnap.recommend` on a large store: 10,000 snapshots with 50,000 records, in the API.

`benchmarks/recommend.py [--snapshots N] [--records N] [--repeats N] [--dir DIR]`; what is measured is announced first,
on stderr; the last line, on stdout, is one JSON document. Manifests and records are written alone, without blocks. The
first call builds the caches and is timed apart; times of repeats are medians, with the slowest beside them.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from blake3 import blake3
from PIL import Image
from store import SETTLE_S, write_manifests  # benchmarks/store.py

from raysnap.search.recommend import recommend
from raysnap.store.records import Recipe, StartFacts, StartRecord, TargetFacts
from raysnap.store.store import Store

NUM_BLOCKS = 20
NUM_DATASETS = 40
GOAL_S = 0.1


def main() -> int:
    """Write the store, ask it again and again, and print one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--snapshots", type=int, default=10_000)
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--dir", type=Path)
    options = parser.parse_args()
    say(f"{options.snapshots:,} snapshots, {options.records:,} records on {NUM_DATASETS} datasets: seconds of a call")
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="bench_recommend-") as place:
        folder = Path(place)
        write_manifests(folder / "store", options.snapshots, NUM_BLOCKS)
        store = Store.open(folder / "store")
        write_records(store, options.records)
        data = write_dataset(folder / "photos")
        time.sleep(SETTLE_S)
        started_s = time.perf_counter()
        found = recommend(store, data)
        first_s = time.perf_counter() - started_s
        time.sleep(SETTLE_S)
        recommend(store, data)
        times_s = []
        for _ in range(options.repeats):
            started_s = time.perf_counter()
            again = recommend(store, data)
            times_s.append(time.perf_counter() - started_s)
            assert again == found
    median_s = statistics.median(times_s)
    figures = {"first_s": first_s, "median_s": median_s, "slowest_s": max(times_s), "num_records": found.num_records}
    say(f"goal of {GOAL_S} s {'met' if median_s < GOAL_S else 'missed'}")
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


def say(text: str) -> None:
    """Write progress to stderr."""
    sys.stderr.write(f"recommend: {text}\n")


def write_records(store: Store, num_records: int) -> None:
    """Write records of random results from the store's snapshots, without waiting for the disk at each."""
    rng = random.Random(0)
    snapshots = store.lineages()
    folder = store.path / "records"
    folder.mkdir()
    for number in range(num_records):
        chosen = rng.choice(snapshots)
        dataset = f"dataset-{rng.randrange(NUM_DATASETS)}"
        content = StartRecord(
            start=StartFacts(
                snapshot=chosen.id, architecture=chosen.architecture, lineage=(chosen.base,) if chosen.base else ()
            ),
            dataset=TargetFacts(
                name=dataset, digest=dataset, num_classes=10, num_train=1000, num_val=200, num_test=200
            ),
            recipe=Recipe(image_size=224, seed=number, train={"epochs": 5, "lr": 1e-3}),
            num_epochs=5,
            metrics={"val_accuracy": rng.random()},
        ).to_bytes()
        (folder / f"{blake3(content).hexdigest()}.json").write_bytes(content)


def write_dataset(root: Path) -> Path:
    """Write a small dataset to ask about."""
    for name in ("cat", "dog"):
        (root / "train" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(root / "train" / name / f"{number}.png")
    return root


if __name__ == "__main__":
    sys.exit(main())
