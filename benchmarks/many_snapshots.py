"""Measure a search over thousands of snapshots: time and memory to its plan, and what narrowing costs.

`benchmarks/many_snapshots.py --quickstart DIR [--snapshots N] [--population N] [--draws N] [--dir DIR]`; the first
DIR is that of a finished `raysnap quickstart`. Its snapshots are the pool: each of the last four blocks of a new
snapshot is the base's, a fine-tuned one, half way between, or a fine-tuned one with noise, so many share few files.

1. Time and peak memory from a question to the plan of its first round, among `--snapshots`, in a fresh process.
2. A whole question among these, with the image-forwards it took, in candidates' worth.
3. Among `--population` snapshots, all of which are scored on many items for the truth: the real loss of narrowing
   (the best left out over the one named) beside the stated one, over `--draws` draws of items of each question.

What is measured is announced first, on stderr; the last line, on stdout, is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from raysnap.config.parts import ShapesConfig
from raysnap.config.search_options import DEFAULT_MAX_CANDIDATES, SearchOptions
from raysnap.store.manifest import BlockEntry, DatasetRecord, Manifest, snapshot_id
from raysnap.store.store import Store
from raysnap.system import utc_timestamp

NUM_VARIED = 4  # blocks below the head
NUM_NOISY = 3  # versions of a fine-tuned block: with one, a quickstart's pool has 9,345 snapshots and no more
NOISE = 0.5  # of a tensor's standard deviation
STITCHED_SHARE = 0.4
SHAPES = ShapesConfig(image_size=40, num_train=200, num_val=600, num_test=20)
QUESTIONS = ("shapes-orientation-b", "shapes-colour-b", "shapes-shape-b", "shapes-texture-b")
NUM_TRAIN, NUM_TEST = 160, 120
CACHE_BYTES = 2**31
SETTLE_S = 2.5  # the index looks at every file again while its folder changed less than 2 s ago


def main() -> None:
    """Announce what is measured, measure it, and print one JSON line."""
    options = parse_options()
    if options.only_plan:
        sys.stdout.write(json.dumps(plan(options.only_plan)) + "\n")
        return
    say(f"a store of {options.snapshots:,} snapshots: seconds and peak RSS from question to plan")
    say(f"a question of {NUM_TRAIN} + {NUM_TEST} items among them, at most {DEFAULT_MAX_CANDIDATES} candidates")
    say(f"the loss of narrowing among {options.population}: real (on {SHAPES.num_val} items) and stated")
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="many_snapshots-") as folder:
        figures = {
            "num_cpus": os.cpu_count(),
            "python": sys.version.split()[0],
            **measure_plan(Path(folder), options),
            "losses": measure_losses(Path(folder), options),
        }
    sys.stdout.write(json.dumps(figures) + "\n")


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quickstart", type=Path, required=True, help="folder of a finished `raysnap quickstart`")
    parser.add_argument("--snapshots", type=int, default=10_000, help="snapshots in the store that is planned for")
    parser.add_argument("--population", type=int, default=400, help="snapshots that are all scored for the truth")
    parser.add_argument("--draws", type=int, default=8, help="draws of items per question")
    parser.add_argument("--questions", type=int, default=2, choices=range(1, 5), help="datasets asked about")
    parser.add_argument(
        "--dir", type=Path, help="folder for stores and datasets; the system's temporary one by default"
    )
    parser.add_argument("--only-plan", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def say(text: str) -> None:
    """Write progress to stderr."""
    sys.stderr.write(f"many_snapshots: {text}\n")


# Stores


def _with_noise(tensors: dict[str, Any], generator: Any) -> dict[str, Any]:
    """Return the tensors, weights with noise."""
    import torch

    return {
        name: tensor + NOISE * tensor.std() * torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point() and tensor.ndim > 1
        else tensor
        for name, tensor in tensors.items()
    }


class Pool:
    """Blocks that snapshots are combined from, in a copy of a quickstart's store."""

    def __init__(self, quickstart: Path, path: Path):
        """Copy the store and add the blocks that are half way to a fine-tuned one, and those with noise."""
        import torch

        shutil.copytree(quickstart / "store" / "objects", path / "objects", copy_function=os.link)
        for name in ("snapshots", "refs"):
            shutil.copytree(quickstart / "store" / name, path / name)
        shutil.copy(quickstart / "store" / "store.json", path)
        (path / "tmp").mkdir()
        self.store = Store.open(path)
        manifests = self.store.manifests()
        self.base = next(manifest for manifest in manifests if manifest.base is None)
        self.tuned = [manifest for manifest in manifests if manifest.base == self.base.id]
        self.num_bytes: dict[str, int] = {}
        self.versions: dict[tuple[int, int], list[str]] = {}
        generator = torch.Generator().manual_seed(0)
        for number, manifest in enumerate(self.tuned):
            for position in range(-1 - NUM_VARIED, -1):
                old, new = self.base.blocks[position].digest, manifest.blocks[position].digest
                self.versions[number, position] = [old, new, *self._mix(old, new, generator)]

    def _mix(self, old: str, new: str, generator: Any) -> list[str]:
        before, after = self.store.read_block(old), self.store.read_block(new)
        halves = {
            name: (tensor + before[name]) / 2 if tensor.is_floating_point() else tensor
            for name, tensor in after.items()
        }
        noisy = [_with_noise(after, generator) for _ in range(NUM_NOISY)]
        return [self.store.put_block(tensors).digest for tensors in (halves, *noisy)]

    def draw(self, rng: random.Random) -> tuple[Manifest, list[tuple[str, str]]]:
        """Draw a snapshot's blocks, below the last two from one fine-tune and these from the same or another."""
        below, above = rng.randrange(len(self.tuned)), rng.randrange(len(self.tuned))
        above = above if rng.random() < STITCHED_SHARE else below
        digests = [block.digest for block in self.base.blocks]
        for position in range(-1 - NUM_VARIED, -1):
            source = above if position >= -3 else below
            digests[position] = rng.choice(self.versions[source, position])
        digests[-1] = self.tuned[above].blocks[-1].digest
        return self.tuned[above], [
            (block.name, digest) for block, digest in zip(self.base.blocks, digests, strict=True)
        ]

    def add(self, rng: random.Random, metrics: dict[str, float] | None = None) -> str:
        """Add a drawn snapshot, and return its id."""
        like, blocks = self.draw(rng)
        num_kept = next(
            (n for n, (block, own) in enumerate(zip(self.base.blocks, blocks, strict=True)) if block.digest != own[1]),
            len(blocks) - 1,
        )
        return self.put(blocks, like.dataset, len(blocks) - 1 - num_kept, metrics or {"val_accuracy": rng.random()})

    def put(
        self,
        blocks: list[tuple[str, str]],
        dataset: DatasetRecord | None,
        retrain_index: int,
        metrics: dict[str, float],
    ) -> str:
        """Write the manifest of these blocks, fine-tuned from the base; without fsync, which would take minutes."""
        for _, digest in blocks:
            if digest not in self.num_bytes:
                self.num_bytes[digest] = self.store.block_bytes(digest)
        manifest = Manifest(
            id=snapshot_id(self.base.architecture, blocks),
            architecture=self.base.architecture,
            num_classes=self.base.num_classes,
            blocks=tuple(BlockEntry(name, digest, self.num_bytes[digest]) for name, digest in blocks),
            base=self.base.id,
            retrain_index=retrain_index,
            dataset=dataset,
            preprocessing=self.base.preprocessing,
            metrics=metrics,
            created=utc_timestamp(),
            raysnap_version="bench",
        )
        (self.store.path / "snapshots" / f"{manifest.id}.json").write_bytes(manifest.to_bytes())
        return manifest.id

    def fill(self, num_snapshots: int, seed: int) -> None:
        """Add drawn snapshots until there are so many."""
        rng, ids = random.Random(seed), {summary.id for summary in self.store.summaries()}
        while len(ids) < num_snapshots:
            ids.add(self.add(rng))

    def measure_metrics(self, data_dir: Path) -> None:
        """Give each snapshot its real validation accuracy on its own dataset: that of a new head on its features."""
        from raysnap.search import search

        for dataset in sorted({manifest.dataset.name for manifest in self.tuned if manifest.dataset}):
            asked = SearchOptions(
                method="shared", max_candidates=None, where=f"dataset == '{dataset}'", data_dir=data_dir, shapes=SHAPES,
                num_train=NUM_TRAIN, num_test=NUM_TEST,
            )  # fmt: skip
            for line in search(self.store, dataset, asked).ranking:
                old = self.store.manifest(line.snapshot)
                if old.base is None:
                    continue
                blocks = [(block.name, block.digest) for block in old.blocks]
                self.put(blocks, old.dataset, old.retrain_index or 0, {"val_accuracy": line.score})


# The plan


def measure_plan(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a store of many snapshots: the plan, and a whole question."""
    from raysnap.models.block_facts import block_shapes
    from raysnap.search import search

    say("making the store")
    started_s = time.perf_counter()
    pool = Pool(options.quickstart, folder / "many")
    pool.fill(options.snapshots, seed=0)
    made_s = time.perf_counter() - started_s
    figures: dict[str, Any] = {"num_snapshots": options.snapshots, "make_store_s": made_s}
    store_bytes = sum(path.stat().st_size for path in (folder / "many" / "objects").rglob("*") if path.is_file())
    figures["block_bytes"] = store_bytes
    (pool.store.path / "index.sqlite").unlink(missing_ok=True)
    time.sleep(SETTLE_S)
    figures["without_index"] = run_plan(pool.store.path)
    runs = [run_plan(pool.store.path) for _ in range(5)]
    figures["plan_s"] = statistics.median(run["plan_s"] for run in runs)
    figures["plan_cpu_s"] = statistics.median(run["plan_cpu_s"] for run in runs)
    figures["imported_rss_bytes"] = statistics.median(run["imported_rss_bytes"] for run in runs)
    figures["peak_rss_bytes"] = max(run["peak_rss_bytes"] for run in runs)
    say(f"plan: {figures['plan_s']:.2f} s, {figures['peak_rss_bytes'] / 2**20:.0f} MiB; asking a whole question")
    asked = SearchOptions(data_dir=folder / "data", shapes=SHAPES, num_train=NUM_TRAIN, num_test=NUM_TEST)
    result = search(pool.store, QUESTIONS[0], asked)
    shapes = block_shapes(pool.base.architecture, pool.base.preprocessing.image_size)
    per_candidate = sum(shape.flops for shape in shapes[:-1]) * (NUM_TRAIN + NUM_TEST)
    assert result.narrowing is not None
    return figures | {
        "question_s": result.timings_s["total"],
        "candidates_worth": result.work["flops"] / per_candidate,
        "num_tried": result.narrowing.num_tried,
        "num_left_out": result.narrowing.num_left_out,
        "expected_loss": result.narrowing.expected_loss,
    }


def run_plan(store: Path) -> dict[str, Any]:
    """Plan in a fresh process."""
    command = [sys.executable, __file__, "--quickstart", "-", "--only-plan", str(store)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def plan(path: Path) -> dict[str, Any]:
    """Measure from a question to the plan of its first round; no block is read."""
    from raysnap.search import ranking  # noqa: F401 - all that a search imports before its first round
    from raysnap.search.narrowing import Field
    from raysnap.search.plan.rungs import plan_rungs
    from raysnap.search.plan.tree import build_tree

    imported_bytes = peak_rss_bytes()
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    candidates = Field(store := Store.open(path), SearchOptions(), store.summaries()).first_round()
    plan_rungs("nested", len(candidates), NUM_TRAIN, NUM_TEST)
    build_tree(candidates, sharing=True)
    assert "torch" not in sys.modules, "a search is planned before torch is imported"
    return {
        "plan_s": time.perf_counter() - started_s,
        "plan_cpu_s": time.process_time() - started_cpu_s,
        "imported_rss_bytes": imported_bytes,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def peak_rss_bytes() -> int:
    """Return the most memory this process ever held; `getrusage` would count its parent's before exec."""
    status = Path("/proc/self/status").read_text()
    kibibytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(kibibytes)


# The loss


def measure_losses(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare narrowed questions with the truth about all snapshots of a smaller population."""
    from raysnap.search import search

    say("making the population, and measuring its metrics")
    pool = Pool(options.quickstart, folder / "population")
    pool.fill(options.population, seed=1)
    pool.measure_metrics(folder / "data")
    rows = []
    for question in QUESTIONS[: options.questions]:
        say(f"the truth about {question}")
        places = {"data_dir": folder / "data", "shapes": SHAPES, "feature_cache_bytes": CACHE_BYTES}
        truth = search(pool.store, question, method="shared", max_candidates=None, num_train=NUM_TRAIN, **places)
        score_of = {line.snapshot: line.score for line in truth.ranking}
        for method in ("shared", "nested"):
            say(f"{options.draws} draws by {method}")
            rows.append(
                {"question": question, "method": method} | narrow(pool, question, method, score_of, options, places)
            )
            say(json.dumps(rows[-1]))
    return rows


def narrow(
    pool: Pool,
    question: str,
    method: str,
    score_of: dict[str, float],
    options: argparse.Namespace,
    places: dict[str, Any],
) -> dict[str, Any]:
    """Answer a question several times with narrowing; return means of what was lost, by the truth."""
    from raysnap.search import search

    lost, stated, regret = [], [], []
    for draw in range(options.draws):
        asked = {"method": method, "num_train": NUM_TRAIN, "num_test": NUM_TEST, "seed": draw} | places
        result = search(pool.store, question, **asked)
        tried = {line.snapshot for line in result.ranking}
        named = score_of[result.ranking[0].snapshot]
        assert result.narrowing is not None
        stated.append(result.narrowing.expected_loss or 0.0)
        lost.append(max(0.0, max(score for one, score in score_of.items() if one not in tried) - named))
        regret.append(max(score_of.values()) - named)
    best, spread = max(score_of.values()), statistics.pstdev(score_of.values())
    return {
        "best": best,
        "median": statistics.median(score_of.values()),
        "spread": spread,
        "stated_loss": statistics.mean(stated),
        "real_loss": statistics.mean(lost),
        "real_loss_error": statistics.stdev(lost) / len(lost) ** 0.5 if len(lost) > 1 else None,
        "regret": statistics.mean(regret),
    }


if __name__ == "__main__":
    main()
