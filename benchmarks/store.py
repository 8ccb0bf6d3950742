"""Measure the model store on this machine: listing, reading, adding, and what sharing saves.

`benchmarks/store.py [--snapshots N] [--blocks N] [--repeats N] [--synthetic N] [--dir DIR]`; what is measured is
announced first, on stderr; the last line, on stdout, is one JSON document. Each listing runs in a fresh process, so
that its memory can be measured; times of repeats are medians, with the interquartile range divided by the median.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blake3 import blake3

from raysnap.store.manifest import BlockEntry, DatasetRecord, Manifest, snapshot_id
from raysnap.store.store import Store
from raysnap.system import utc_timestamp

SETTLE_S = 2.5  # the index looks at every file again while its folder changed less than 2 s ago
SMALL_SHARE = 10
FILTER = "dataset == 'dataset-3' and accuracy > 0.9 and retrain_index <= 40"
ARCHITECTURE = "resnet18"
DISTRIBUTION = "twenty_five_percent"
SPREAD_LIMIT = 0.10
MEBIBYTE = 2**20


def main() -> None:
    """Announce what is measured, measure it, and print one JSON line."""
    options = parse_options()
    if options.only:
        sys.stdout.write(json.dumps(ALONE[options.only](options.dir, options.repeats)) + "\n")
        return
    small = max(options.snapshots // SMALL_SHARE, 1)
    for line in (
        f"listing: {options.snapshots:,} snapshots x {options.blocks} blocks (manifests alone, no block files):",
        "  seconds to rebuild the index, list and filter in the API, run `raysnap store ls --json`, and gc; peak RSS",
        f"  the rebuild once more with {small:,} snapshots, for its growth",
        f"reading: a {ARCHITECTURE} snapshot, 45 MB, put new and again; read_block against read + BLAKE3, cached files",
        f"sharing: {options.synthetic} synthetic {ARCHITECTURE}, {DISTRIBUTION}: bytes on disk over unique block bytes",
        f"medians of {options.repeats} repeats; nothing else should run meanwhile",
    ):
        say(line)
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="bench_store-") as folder:
        figures = {
            "num_snapshots": options.snapshots,
            "num_blocks": options.blocks,
            "num_cpus": os.cpu_count(),
            "python": sys.version.split()[0],
            **measure_listing(Path(folder), options, small),
            **run_alone("reading", Path(folder), options.repeats),
            **run_alone("sharing", Path(folder), options.synthetic),
        }
    for name in sorted(figures):
        if name.endswith("_spread") and figures[name] > SPREAD_LIMIT:
            say(f"unsteady: {name} is {figures[name]:.0%} of the median; the machine was busy")
    sys.stdout.write(json.dumps(figures) + "\n")


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--snapshots", type=int, default=10_000, help="snapshots in the store that is listed")
    parser.add_argument("--blocks", type=int, default=100, help="blocks of each")
    parser.add_argument("--repeats", type=int, default=7, help="repeats of each timed call")
    parser.add_argument("--synthetic", type=int, default=36, help="synthetic snapshots that share blocks")
    parser.add_argument("--dir", type=Path, help="folder for the stores; the system's temporary one by default")
    parser.add_argument("--only", choices=sorted(ALONE), help=argparse.SUPPRESS)
    return parser.parse_args()


def say(text: str) -> None:
    """Write progress to stderr."""
    sys.stderr.write(f"store: {text}\n")


# Listing


def measure_listing(folder: Path, options: argparse.Namespace, small: int) -> dict[str, Any]:
    """Measure a store of many snapshots."""
    figures: dict[str, Any] = {}
    for label, num_snapshots in (("small", small), ("large", options.snapshots)):
        say(f"writing {num_snapshots:,} manifests")
        write_manifests(folder / label, num_snapshots, options.blocks)
        say(f"rebuilding the index of {num_snapshots:,}")
        rebuilt = run_alone("rebuild", folder / label, 1)
        figures |= rebuilt if label == "large" else {"small_rebuild_s": rebuilt["rebuild_s"]}
    figures["num_small_snapshots"] = small
    figures["rebuild_growth"] = figures["rebuild_s"] / figures["small_rebuild_s"]
    time.sleep(SETTLE_S)
    run_alone("list", folder / "large", 1)
    say("listing")
    figures |= run_alone("list", folder / "large", options.repeats)
    figures |= time_command(folder / "large", options.repeats)
    say("collecting")
    return figures | run_alone("gc", folder / "large", 1)


def write_manifests(path: Path, num_snapshots: int, num_blocks: int) -> None:
    """Write manifests of snapshots that share most of their blocks, without fsync and without the blocks."""
    Store.open(path, create=True)
    rng = random.Random(0)
    shared = [blake3(f"shared {index}".encode()).hexdigest() for index in range(num_blocks)]
    classes = tuple(f"class {index}" for index in range(10))
    for number in range(num_snapshots):
        retrain_index = rng.randint(1, max(1, num_blocks // 2))
        own = [blake3(f"{number} {index}".encode()).hexdigest() for index in range(retrain_index)]
        digests = shared[: num_blocks - retrain_index] + own
        blocks = tuple(BlockEntry(f"layer.{index}", digest, 1000) for index, digest in enumerate(digests))
        manifest = Manifest(
            id=snapshot_id(ARCHITECTURE, [(block.name, block.digest) for block in blocks]),
            architecture=ARCHITECTURE,
            num_classes=len(classes),
            blocks=blocks,
            dataset=DatasetRecord(name=f"dataset-{number % 9}", classes=classes),
            retrain_index=retrain_index,
            metrics={"val_accuracy": rng.random(), "val_loss": 1.0},
            train={"lr": 0.1, "epochs": 5},
            trial=f"trial-{number}",
            created=utc_timestamp(),
            raysnap_version="bench",
        )
        (path / "snapshots" / f"{manifest.id}.json").write_bytes(manifest.to_bytes())
        (path / "refs" / f"trial-{number}").write_text(f"{manifest.id}\n")


def rebuild(path: Path, repeats: int) -> dict[str, Any]:
    """Time the first listing after the index was lost."""
    (path / "index.sqlite").unlink(missing_ok=True)
    return {**timed("rebuild_s", lambda: Store.open(path).summaries(), repeats), "rebuild_rss_bytes": peak_rss_bytes()}


def list_snapshots(path: Path, repeats: int) -> dict[str, Any]:
    """Time listings and filters in one process, with an up-to-date index."""
    store = Store.open(path)
    return {
        **timed("list_s", store.summaries, repeats),
        **timed("filter_s", lambda: store.summaries(FILTER), repeats),
        "num_filtered": len(store.summaries(FILTER)),
        "list_rss_bytes": peak_rss_bytes(),
    }


def time_command(path: Path, repeats: int) -> dict[str, Any]:
    """Time the command in a fresh process, start of Python included."""
    command = [sys.executable, "-m", "raysnap", "store", "ls", "--json", "--store", str(path)]
    return timed("list_command_s", lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), repeats)


def collect(path: Path, repeats: int) -> dict[str, Any]:
    """Time a gc that reads every manifest to mark what is reached."""
    return {**timed("gc_mark_s", lambda: Store.open(path).gc(), repeats), "gc_rss_bytes": peak_rss_bytes()}


# Reading, adding and sharing


def read_and_add(folder: Path, repeats: int) -> dict[str, Any]:
    """Time adding a snapshot, new and again, and verified reads against reading and hashing alone."""
    from raysnap.models.blocks import random_tensors

    store = Store.open(folder / "reading", create=True)
    new_s, again_s = [], []
    for seed in range(repeats):
        blocks = random_tensors(ARCHITECTURE, num_classes=1000, seed=seed)
        for times_s in (new_s, again_s):
            started_s = time.perf_counter()
            written = store.put_snapshot(architecture=ARCHITECTURE, blocks=blocks, num_classes=1000)
            times_s.append(time.perf_counter() - started_s)
    paths = [store.path / "objects" / one.digest[:2] / one.digest for one in written.manifest.blocks]

    def read_and_hash() -> None:
        for path in paths:
            if blake3(path.read_bytes()).hexdigest() != path.name:
                raise RuntimeError(f"{path}: damaged")

    def read_blocks() -> None:
        for path in paths:
            store.read_block(path.name)

    plain_s, verified_s = [], []
    for _ in range(3 * repeats):
        plain_s.append(seconds_of(read_and_hash))
        verified_s.append(seconds_of(read_blocks))
    return {
        "snapshot_bytes": written.manifest.num_bytes,
        **summarise("add_new_s", new_s),
        **summarise("add_again_s", again_s),
        **summarise("read_and_hash_s", plain_s),
        **summarise("read_block_s", verified_s),
        "read_speed_ratio": statistics.median(plain_s) / statistics.median(verified_s),
    }


def share(folder: Path, num_snapshots: int) -> dict[str, Any]:
    """Count the bytes of synthetic snapshots, each made from another by re-initialising its last blocks."""
    import numpy as np

    from raysnap.config.parts import RetrainConfig
    from raysnap.models.blocks import random_tensors
    from raysnap.planning.sampling import draw_retrain_indices

    store = Store.open(folder / "sharing", create=True)
    config = RetrainConfig(distribution=DISTRIBUTION)
    indices = draw_retrain_indices(config, ARCHITECTURE, num_snapshots, np.random.default_rng(0))
    rng = random.Random(0)
    made = []
    for number, retrain_index in enumerate(indices):
        blocks = random_tensors(ARCHITECTURE, num_classes=1000, seed=number)
        if made:
            num_kept = len(blocks) - 1 - retrain_index
            parent = rng.choice(made)
            kept = [(one.name, one.digest) for one in parent.blocks[:num_kept]]
            blocks = [*kept, *blocks[num_kept:]]
        made.append(store.put_snapshot(architecture=ARCHITECTURE, blocks=blocks, num_classes=1000).manifest)
    unique_bytes = sum({one.digest: one.num_bytes for manifest in made for one in manifest.blocks}.values())
    stats = store.stats()
    on_disk = sum(path.stat().st_size for path in store.path.rglob("*") if path.is_file())
    return {
        "num_synthetic": num_snapshots,
        "synthetic_bytes_on_disk": on_disk,
        "synthetic_unique_bytes": unique_bytes,
        "synthetic_bytes_if_copied": stats["bytes_if_copied"],
        "disk_over_unique": on_disk / unique_bytes,
        "disk_over_copied": on_disk / stats["bytes_if_copied"],
    }


# Clocks


ALONE: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "rebuild": rebuild,
    "list": list_snapshots,
    "gc": collect,
    "reading": read_and_add,
    "sharing": share,
}


def run_alone(part: str, path: Path, count: int) -> dict[str, Any]:
    """Measure one part in a fresh process."""
    command = [sys.executable, __file__, "--only", part, "--dir", str(path), "--repeats", str(count)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def seconds_of(call: Callable[[], object]) -> float:
    """Time one call."""
    started_s = time.perf_counter()
    call()
    return time.perf_counter() - started_s


def timed(name: str, call: Callable[[], object], repeats: int) -> dict[str, float]:
    """Return the median seconds of the call, and their spread."""
    return summarise(name, [seconds_of(call) for _ in range(repeats)])


def summarise(name: str, times_s: list[float]) -> dict[str, float]:
    """Return the median of raw times under `name`; from four repeats on, the interquartile range divided by it."""
    median_s = statistics.median(times_s)
    figures = {name: median_s}
    if len(times_s) >= 4:
        first, _, third = statistics.quantiles(times_s, n=4)
        figures[f"{name.removesuffix('_s')}_spread"] = (third - first) / median_s
    return figures


def peak_rss_bytes() -> int:
    """Return the most memory this process ever held; `getrusage` would count its parent's before exec."""
    status = Path("/proc/self/status").read_text()
    kibibytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(kibibytes) * (MEBIBYTE // 1024)


if __name__ == "__main__":
    main()
