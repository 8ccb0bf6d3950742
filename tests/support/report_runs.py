"""Run directories for the tests of reports: rows as jobs write them, without a job having run."""

import json
import math
from pathlib import Path

import torch
from PIL import Image

from raysnap.store.store import Store

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp; {{ 7 * 7 }} \x00\ud800\u202e\x1b[2J"
METHODS = {"baseline": 8.0, "shift": 5.0, "shared": 3.0, "alsatian": 2.0}


def trial(number: int, *, dataset="shapes-shape-a", status="done", name=None, snapshot=None, **more) -> dict:
    accuracy = 0.5 + number / 1000
    return {
        "trial": name or f"{number:03d}-resnet18-{dataset}-r{number % 9}",
        "role": "finetune",
        "status": status,
        "error": None if status == "done" else f"it went wrong at {number}",
        "architecture": "resnet18",
        "dataset": dataset,
        "retrain_index": number % 9,
        "num_blocks": 8,
        "snapshot": snapshot or (f"{number:064x}" if status == "done" else None),
        "metrics": {"val_accuracy": accuracy, "test_accuracy": accuracy} if status == "done" else {},
        "history": [{"epoch": epoch, "val_accuracy": accuracy * epoch / 3} for epoch in (1, 2, 3)],
        "timings_s": {"train": 1.5, "total": 2.0},
        "new_bytes": 1000,
        "snapshot_bytes": 4000,
    } | more


def search(method: str, repeat: int, ranking: list[dict], *, dataset="shapes-shape-b", total_s=None, **more) -> dict:
    total_s = total_s or METHODS.get(method, 4.0) * (1 + 0.01 * repeat)
    return {
        "cell": f"{dataset}.linear.{method}",
        "repeat": repeat,
        "status": "done",
        "error": None,
        "method": method,
        "proxy": "linear",
        "dataset": dataset,
        "search": {
            "method": method,
            "num_candidates": len(ranking),
            "ranking": ranking,
            "timings_s": {"total": total_s, "plan": 0.1, "load_blocks": 0.2, "inference": total_s / 2, "proxy": 0.3},
            "work": {"block_item_passes": 900, "flops": 1.5e9, "block_bytes_read": 10**6, "images_decoded": 100},
            "peak_activation_bytes": 123_000,
            "skipped": [],
        },
    } | more


def ranking_of(trials: list[dict]) -> list[dict]:
    done = [row for row in trials if row["snapshot"]]
    return [
        {
            "rank": rank,
            "snapshot": row["snapshot"],
            "name": row["trial"],
            "score": 0.9 - 0.01 * rank,
            "num_train": 80,
            "num_test": 20,
            "tied_with_best": rank <= 2,
        }
        for rank, row in enumerate(done, start=1)
    ]


def write_run(run_dir: Path, rows: list, **config) -> Path:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (run_dir / "config.yaml").write_text(json.dumps({"kind": "generate", "store": "no-such-store"} | config), "utf-8")
    env = {"torch": "2.15.0", "cpu": "a CPU", "seed": 7, "gpus": [], "wall_s": 60.0, "stages_s": {"data": 5, "base": 9}}
    (run_dir / "env.json").write_text(json.dumps(env), "utf-8")
    return run_dir


def quickstart(run_dir: Path, trials: list[dict], repeats: int = 3) -> Path:
    write_run(run_dir, trials)
    write_run(run_dir / "bench", [search(m, k, ranking_of(trials)) for m in METHODS for k in range(repeats)])
    return run_dir


def put_tree(store: Store, num_snapshots: int, num_blocks: int = 10) -> list[dict]:
    """Trials whose tiny snapshots share prefixes of many lengths, as fine-tunes of fine-tunes do."""
    trials = []
    for number in range(num_snapshots):
        blocks = []
        for depth in range(num_blocks):
            version = number % min(num_snapshots, 2 ** max(0, depth - 2)) if depth < num_blocks - 1 else number
            name = "stem" if depth == 0 else "head" if depth == num_blocks - 1 else f"layer{depth // 2}.{depth % 2}"
            blocks.append((name, store.put_block({f"w{depth}": torch.tensor([float(version), float(depth)])})))
        written = store.put_snapshot(architecture="resnet18", blocks=blocks, num_classes=4)
        sets = ["shapes-shape-a", "shapes-colour-a", "shapes-texture-a", "shapes-orientation-a"]
        trials.append(trial(number, dataset=sets[number % 4], snapshot=written.manifest.id))
    return trials


def bench_row(method: str, repeat: int, ranking: list[dict], *, cache="warm", num_train=80, **more) -> dict:
    """Return a row of a benchmark with its axes, its bound, its rungs and what was found of the page cache."""
    row = search(method, repeat, ranking, **more)
    total_s = row["search"]["timings_s"]["total"] * (2.5 if cache == "cold" else 1.0) * num_train / 80
    rungs = [
        {
            "num_candidates": max(1, len(ranking) // 2**rung),
            "num_train": 10 * 2**rung,
            "num_test": 20,
            "num_kept": max(1, len(ranking) // 2 ** (rung + 1)),
            "expected_loss": 0.02,
            "flops": 10**9,
            "total_s": total_s / 4,
        }
        for rung in range(3)
    ]
    shared = {"total": total_s, "plan": 0.05, "load_blocks": total_s / 5, "decode": total_s / 10}
    row["search"] |= {
        "timings_s": shared | {"inference": total_s / 2, "proxy": total_s / 10},
        "bound_s": total_s * (0.4 if method == "baseline" else 0.8),
        "rungs": rungs if method in ("shift", "alsatian") else [],
        "static_baseline": ranking[-1],
        "precision": "float32",
    }
    return row | {
        "cell": f"{cache}.{num_train}.{row['cell']}",
        "store": "synthetic",
        "num_train": num_train,
        "image_size": 32,
        "budget_bytes": None,
        "cache": cache,
        "detail": "steps",
        "page_cache": {"state": cache},
        "io": {"read_bytes": 10**7 if cache == "cold" else 0},
        "memory": {"peak_rss_bytes": 5 * 10**8, "peak_cuda_bytes": None},
        "is_noisy": repeat == 1 and method == "shift",
        "noise": ["other processes took 34 % of the CPUs"] if repeat == 1 and method == "shift" else [],
    }


def bench_run(run_dir: Path, num_candidates: int = 12) -> Path:
    """Write a benchmark of four methods, cold and warm, on two numbers of items."""
    ranking = ranking_of([trial(number) for number in range(num_candidates)])
    rows = [
        bench_row(method, repeat, ranking, cache=cache, num_train=num_train)
        for method in METHODS
        for cache in ("warm", "cold")
        for num_train in (80, 160)
        for repeat in range(3)
    ]
    return write_run(run_dir, rows, kind="bench")


def sweep_trial(number: int, point: dict, accuracy: float, *, status="done", stopped=None, **more) -> dict:
    """Return a row of a sweep whose validation loss turns up again after its best epoch."""
    best_epoch, num_epochs = 4, 7 if stopped == "patience" else 8
    history = [
        {
            "epoch": epoch,
            "train_loss": 1.6 * math.exp(-0.5 * epoch),
            "val_loss": 1.2 - accuracy + 0.05 * (epoch - best_epoch) ** 2,
            "val_accuracy": accuracy - 0.02 * abs(epoch - best_epoch),
            "lr": 1e-3,
        }
        for epoch in range(1, num_epochs + 1)
    ]
    test = {"test_accuracy": accuracy - 0.01, "test_top5_accuracy": 0.99, "test_macro_f1": accuracy - 0.02}
    row = trial(number, status=status, name=f"{number:03d}-sweep", history=history)
    metrics = {"best_epoch": best_epoch, "val_accuracy": accuracy, "val_loss": 1.2 - accuracy}
    return (
        row
        | {
            "metrics": metrics | (test if status == "done" else {}),
            "point": point,
            "sample": 1,
            "objective": accuracy,
            "stopped": stopped,
            "timings_s": {"train": 10.0 + number, "evaluate": 1.0, "prefix": 2.0, "total": 14.0 + number},
            "wall_s": 16.0 + number,
            "num_trained_parameters": 1000 * (number + 1),
            "error": None if status in ("done", "stopped") else f"it went wrong at {number}",
        }
        | more
    )


def grid_sweep(run_dir: Path, data_dir: Path | None = None, num_samples: int = 1) -> Path:
    """Write a grid of eight models: pretrained x fine-tuned x optimizer; the best one with test predictions."""
    rows, number = [], 0
    for sample in range(1, num_samples + 1):
        for base in ("pretrained", "not pretrained"):
            for retrain in ("head only", "last blocks"):
                for optimizer in ("adam", "sgd"):
                    point = {"base": base, "retrain": retrain, "train.optimizer": optimizer}
                    accuracy = 0.5 + 0.25 * (base == "pretrained") + 0.1 * (retrain != "head only")
                    accuracy += 0.04 * (optimizer == "adam") + 0.01 * sample
                    stopped = "patience" if number % 3 == 0 else None
                    rows.append(sweep_trial(number, point, accuracy, stopped=stopped, sample=sample))
                    number += 1
    space = {key: {"grid": []} for key in ("base", "retrain", "train.optimizer")}
    write_run(run_dir, rows, kind="sweep", metric="val_accuracy", mode="max", space=space)
    if data_dir is not None:
        best = max(rows, key=lambda row: row["objective"])
        best["predictions"] = f"predictions/{best['trial']}.json"
        write_run(run_dir, rows, kind="sweep", metric="val_accuracy", mode="max", space=space)
        write_predictions(run_dir / best["predictions"], data_dir)
    return run_dir


def random_sweep(run_dir: Path, num_trials: int = 30) -> Path:
    """Write a random search over numbers and words with a conditional key, ended by ASHA for the worse half."""
    rows = []
    for number in range(num_trials):
        noise = math.sin(number * 12.9898) * 43758.5453 % 1
        lr = 10 ** (-4 + 3 * noise)
        optimizer = ("sgd", "adam", "adamw")[number % 3]
        point = {
            "train.lr": lr,
            "train.optimizer": optimizer,
            "retrain.freeze_fraction": (0.7, 0.8, 0.9)[number % 3 - 1],
        }
        point |= {"train.momentum": round(0.5 + 0.4 * (noise * 7 % 1), 3)} if optimizer == "sgd" else {}
        accuracy = 0.9 - 0.12 * (math.log10(lr) + 2.5) ** 2 - 0.05 * (optimizer == "sgd")
        if number % 2:
            rows.append(sweep_trial(number, point, accuracy - 0.1, status="stopped", stopped="scheduler"))
        else:
            rows.append(sweep_trial(number, point, accuracy))
    rows.append(sweep_trial(num_trials, {"train.lr": 0.9}, 0.1, status="diverged", objective=None))
    space = {"train.lr": {"loguniform": [1e-4, 1e-1]}, "train.optimizer": {"choice": ["sgd", "adam", "adamw"]}}
    return write_run(run_dir, rows, kind="sweep", metric="val_accuracy", mode="max", scheduler="asha", space=space)


def write_images(data_dir: Path, classes: list[str], num_images: int) -> list[str]:
    """So many tiny images of each class in train and test; the paths of the test ones."""
    paths = []
    for split in ("train", "test"):
        for label, name in enumerate(classes):
            (data_dir / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(num_images):
                file = f"{split}/{name}/{number}.png"
                Image.new("RGB", (16, 16), (60 * label % 256, 40 * number % 256, 120)).save(data_dir / file)
                paths += [file] if split == "test" else []
    return paths


def write_predictions(path: Path, data_dir: Path, num_images: int = 6) -> None:
    """Predictions for a dataset of three classes: the last image of each is taken for the next class."""
    classes = ["cat", "dog", "owl"]
    paths = write_images(data_dir, classes, num_images)
    labels = [index // num_images for index in range(len(paths))]
    predicted = [
        (label + 1) % 3 if index % num_images == num_images - 1 else label for index, label in enumerate(labels)
    ]
    confidence = [0.5 + 0.4 * index / len(paths) for index in range(len(paths))]
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"trial": path.stem, "dataset": data_dir.name, "root": str(data_dir), "classes": classes, "paths": paths}
    path.write_text(json.dumps(document | {"labels": labels, "predicted": predicted, "confidence": confidence}))


def everything(run_dir: Path, store: Store, data_dir: Path) -> Path:
    """Write a run of everything: a sweep, a failure, a store, searches of its snapshots, images, predictions."""
    grid_sweep(run_dir, data_dir / "pets", num_samples=2)
    rows = [json.loads(line) for line in (run_dir / "results.jsonl").read_text().splitlines()]
    held = put_tree(store, 8, num_blocks=6)
    for row, one in zip(rows, held, strict=False):
        row |= {"snapshot": one["snapshot"], "dataset": "pets"}
    rows += [
        sweep_trial(90, {"base": "random"}, 0.4, status="stopped", stopped="scheduler"),
        trial(91, status="failed", dataset="pets"),
    ]
    tuned = [trial(100 + n, dataset="target", base=one["snapshot"], role="probe") for n, one in enumerate(held[:4])]
    config = {"metric": "val_accuracy", "mode": "max", "store": str(store.path), "data_dir": str(data_dir)}
    write_run(run_dir, rows + tuned, kind="sweep", **config)
    ranking = ranking_of(rows)
    searches = [
        bench_row(method, repeat, ranking, cache=cache, dataset="target")
        for method in METHODS
        for cache in ("warm", "cold")
        for repeat in range(3)
    ]
    write_run(run_dir / "bench", searches)
    return run_dir
