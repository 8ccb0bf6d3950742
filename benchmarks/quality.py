"""Measure how good a search's answers are, on snapshots that were really trained and fine-tunes that really ran.

`benchmarks/quality.py [--draws N] [--num-train N] [--num-test N] [--epochs N] [--dir DIR]`: the quickstart's
population (fine-tunes of one base on the `-a` tasks of `shapes`) is trained in DIR, once. Then, with each `-b` task
that the base was not trained on as a target,

- proxies: every candidate is fine-tuned on the target for real, and each proxy's scores are compared with the test
  accuracies: weighted Kendall tau, averaged over targets, with its 95 % interval from resampled candidates;
- draws: a planted candidate, the one that was fine-tuned on the task related to the target with most blocks retrained,
  among four of other tasks, and a subset of the items; the default method and proxy have to put it first. Draws in
  which another candidate is really the better start are counted separately.

What is measured is announced first, on stderr; the last line, on stdout, is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from scipy.stats import weightedtau

from raysnap.config.choices import Proxy, Role
from raysnap.config.jobs import GenerateConfig
from raysnap.config.load import dump_yaml, load_config
from raysnap.config.quickstart import QuickstartConfig
from raysnap.config.train import TrainConfig
from raysnap.datasets.dataset import open_dataset
from raysnap.search import search
from raysnap.store.manifest import Manifest
from raysnap.store.preprocessing import Preprocessing
from raysnap.store.store import Store
from raysnap.training.trial import Trial
from raysnap.training.trial_loop import TrainJob, run_trial

QUICKSTART = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"
TARGETS = ("shapes-shape-b", "shapes-texture-b", "shapes-orientation-b")
GOAL = 0.95
NUM_OTHERS = 4
NUM_RESAMPLES = 1000


def main() -> None:
    """Announce what is measured, measure it, and print one JSON line."""
    options = parse_options()
    say(f"goal: the planted candidate first in {GOAL:.0%} of {options.draws} draws of targets, candidates and items")
    say(f"targets {', '.join(TARGETS)}; {options.num_train} train and {options.num_test} test items")
    say(f"real accuracy: all blocks fine-tuned for {options.epochs} epochs on as many train items, on the test split")
    if options.dir is None:
        with tempfile.TemporaryDirectory(prefix="bench_quality-") as folder:
            figures = measure(Path(folder), options)
    else:
        figures = measure(options.dir.absolute(), options)
    sys.stdout.write(json.dumps(figures) + "\n")


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=42, help="searches for a planted candidate")
    parser.add_argument("--num-train", type=int, default=160, help="train items of a search, and of a fine-tune")
    parser.add_argument("--num-test", type=int, default=120, help="test items of a search")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of each real fine-tune")
    parser.add_argument("--dir", type=Path, help="folder to keep the population and the fine-tunes in, for reruns")
    return parser.parse_args()


def say(text: str) -> None:
    """Write progress to stderr."""
    sys.stderr.write(f"quality: {text}\n")


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return all figures."""
    started = time.perf_counter()
    config = train_population(folder)
    store = Store.open(config.store)
    trained_s = time.perf_counter() - started
    accuracies = {target: fine_tune_all(store, config, target, folder, options) for target in TARGETS}
    fine_tuned_s = time.perf_counter() - started - trained_s
    draws = [run_draw(store, config, draw, accuracies, options) for draw in range(options.draws)]
    drawn_s = time.perf_counter() - started - trained_s - fine_tuned_s
    best = [draw["is_first"] for draw in draws if draw["is_really_best"]]
    say(f"first: {sum(draw['is_first'] for draw in draws)} of {len(draws)} planted candidates")
    say(f"first: {sum(best)} of the {len(best)} that really are the best start of their draw")
    return {
        "num_candidates": len(store.manifests()),
        "num_draws": len(draws),
        "num_first": sum(draw["is_first"] for draw in draws),
        "num_really_best": len(best),
        "num_really_best_first": sum(best),
        "meets_goal": sum(draw["is_first"] for draw in draws) >= GOAL * len(draws),
        "missed": [draw for draw in draws if not draw["is_first"]],
        "accuracies": accuracies,
        "proxies": {proxy: judge_proxy(store, config, proxy, accuracies, options) for proxy in get_args(Proxy)},
        "train_population_s": trained_s,
        "fine_tunes_s": fine_tuned_s,
        "draws_s": drawn_s,
        "total_s": time.perf_counter() - started,
        "num_cpus": os.cpu_count(),
        "torch": torch.__version__,
    }


def train_population(folder: Path) -> GenerateConfig:
    """Train the quickstart's population, except what `folder` has; return its configuration."""
    from raysnap.cli.app import main as raysnap

    quickstart = load_config(QUICKSTART, [], QuickstartConfig)
    places = {"run_dir": folder / "run", "store": folder / "store", "data_dir": folder / "data"}
    config = GenerateConfig.model_validate(quickstart.generate.model_dump() | places)
    folder.mkdir(parents=True, exist_ok=True)
    config_path = folder / "population.yaml"
    config_path.write_text(dump_yaml(config))
    resume = ["--resume"] if config.run_dir.exists() else []
    stdout = os.dup(1)
    os.dup2(2, 1)  # the job's own summary is no figure of this
    try:
        exit_code = raysnap(["generate", str(config_path), "--json", *resume])
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
    if exit_code:
        sys.exit(f"quality: training the population ended with exit code {exit_code}")
    return config


def run_draw(
    store: Store,
    config: GenerateConfig,
    draw: int,
    accuracies: dict[str, dict[str, float]],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Search by the default method and proxy for a planted candidate among others."""
    rng = np.random.default_rng(draw)
    target = TARGETS[draw % len(TARGETS)]
    by_relation: dict[bool, list[Manifest]] = {True: [], False: []}
    for manifest in store.manifests():
        by_relation[manifest.dataset.name == target.removesuffix("b") + "a"].append(manifest)
    planted = max(by_relation[True], key=lambda manifest: manifest.retrain_index).id
    others = [manifest.id for manifest in rng.choice(by_relation[False], NUM_OTHERS, replace=False)]
    where = " or ".join(f"id == '{snapshot}'" for snapshot in [planted, *others])
    ranking = find(store, config, target, options, where=where, seed=draw).ranking
    (rank,) = (line.rank for line in ranking if line.snapshot == planted)
    name = store.names_of(planted)[0]
    say(f"draw {draw}: {target}: {name} at rank {rank}, {ranking[0].score:.3f} is the best score")
    return {
        "draw": draw,
        "target": target,
        "planted": name,
        "is_first": rank == 1,
        "is_really_best": accuracies[target][planted] >= max(accuracies[target][other] for other in others),
        "first": ranking[0].name,
    }


def find(store: Store, config: GenerateConfig, target: str, options: argparse.Namespace, **more: Any) -> Any:
    """Search the population for a target."""
    return search(
        store,
        target,
        data_dir=config.data_dir,
        shapes=config.shapes,
        num_train=options.num_train,
        num_test=options.num_test,
        **more,
    )


def fine_tune_all(
    store: Store, config: GenerateConfig, target: str, folder: Path, options: argparse.Namespace
) -> dict[str, float]:
    """Return each candidate's test accuracy after a real fine-tune on the target; kept in `folder`."""
    path = folder / f"{target}-{options.num_train}-{options.epochs}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    dataset = open_dataset(target, config.data_dir, config.shapes)
    for manifest in store.manifests():
        if manifest.id in known:
            continue
        trial = Trial(
            id=store.names_of(manifest.id)[0],
            role=Role.FINETUNE,
            architecture=manifest.architecture,
            dataset=target,
            retrain_index=None,
            seed=0,
            train=TrainConfig(epochs=options.epochs, batch_size=32),
        )
        job = TrainJob(
            store_dir=config.store,
            dataset_dirs={target: dataset.root},
            bases={trial.base_key: manifest.id},
            preprocessing=Preprocessing.model_validate(manifest.preprocessing.model_dump()),
            seed=0,
            num_train=options.num_train,
            num_val=None,
            num_test=None,
        )
        reported: dict[str, Any] = {}
        run_trial(trial, job, torch.device("cpu"), lambda metrics, _, into=reported: into.update(metrics))
        known[manifest.id] = reported["kept"]["test_accuracy"]
        say(f"{target}: {trial.id} reaches {known[manifest.id]:.3f} when fine-tuned")
        path.write_text(json.dumps(known))
    return known


def judge_proxy(
    store: Store,
    config: GenerateConfig,
    proxy: Proxy,
    accuracies: dict[str, dict[str, float]],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Compare the order of a proxy's scores with that of the candidates' real accuracies."""
    pairs, regrets = [], []
    for target, by_snapshot in accuracies.items():
        ranking = find(store, config, target, options, method="shared", proxy=proxy, seed=0).ranking
        pairs.append(np.array([(line.score, by_snapshot[line.snapshot]) for line in ranking]))
        regrets.append(max(by_snapshot.values()) - by_snapshot[ranking[0].snapshot])
    rng = np.random.default_rng(0)
    resampled = [
        mean_tau([pairs_K2[rng.integers(len(pairs_K2), size=len(pairs_K2))] for pairs_K2 in pairs])
        for _ in range(NUM_RESAMPLES)
    ]
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    found = {
        "weighted_tau": mean_tau(pairs),
        "weighted_tau_95": [float(low), float(high)],
        "weighted_tau_by_target": dict(zip(accuracies, (mean_tau([one]) for one in pairs), strict=True)),
        "regret_by_target": dict(zip(accuracies, regrets, strict=True)),
    }
    say(f"{proxy}: weighted tau {found['weighted_tau']:.2f} ({low:.2f} to {high:.2f}), regret {np.mean(regrets):.3f}")
    return found


def mean_tau(pairs: list[np.ndarray]) -> float:
    """Return the mean over targets of the weighted Kendall tau of scores and accuracies, `[K, 2]` each, all finite."""
    assert all(np.isfinite(one).all() for one in pairs), "weightedtau would take a NaN for the lowest value"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a resample may hold one candidate only
        return float(np.nanmean([weightedtau(scores, real).statistic for scores, real in (one.T for one in pairs)]))


if __name__ == "__main__":
    main()
