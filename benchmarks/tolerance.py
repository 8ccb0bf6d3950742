"""Measure what `nested` loses on new items, beside `shared`, and whether the loss that it states is right.

`benchmarks/tolerance.py [--architecture NAME] [--snapshots N] [--distribution NAME] [--base WEIGHTS] [--store STORE]
[--dataset TASK] [--image-size PX] [--train N] [--test N] [--draws N] [--fresh N] [--tolerances A,B] [--proxy NAME]
[--dir DIR]`: features of a pool of items are computed once and kept in DIR. Each draw takes other items of the pool and
runs the methods' own contests on their features. A candidate's true score is that of its probe, fitted on all of the
draw's train items, on the fresh items. Regret is the best true score minus the winner's; the luck of the fresh items
makes it too large, as the best of many scores is the luckiest. `regret_at_least` names the best on one half of the
fresh items and compares it with the winner on the other half, and the reverse: it is too small where that is not the
best. What is measured is announced first, on stderr; the last line, on stdout, is one JSON document.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from search import add_question, describe_items, describe_snapshots, facts, make_store

from raysnap.config.choices import Proxy
from raysnap.config.parts import ShapesConfig
from raysnap.config.search_options import DEFAULT_TOLERANCE, SearchOptions
from raysnap.datasets.dataset import open_dataset
from raysnap.datasets.pixel_cache import PixelCache
from raysnap.datasets.resizing import Resizing
from raysnap.datasets.splits import stratified_order
from raysnap.search.candidates import find_candidates
from raysnap.search.contest import Contest
from raysnap.search.engine.border import Border
from raysnap.search.engine.items import ProbeItems
from raysnap.search.engine.setup import Setup, open_executor
from raysnap.search.engine.source import Gathered
from raysnap.search.engine.work import Work
from raysnap.search.plan.rungs import plan_rungs
from raysnap.search.plan.tree import PrefixTree, build_tree
from raysnap.search.plan.workload import whole_models
from raysnap.search.probes.proxies import score_candidates
from raysnap.store.store import Store

POOL = 4  # so many times the items of a draw are drawn from
CPU = torch.device("cpu")


@dataclass
class Pool:
    """Features of every candidate for train, test and fresh items, in this order; a draw's are a view of it."""

    tree: PrefixTree
    features_CID: np.ndarray
    labels_I: np.ndarray
    num_train: int
    num_test: int

    def draw(self, num_train: int, num_test: int, seed: int) -> np.ndarray:
        """Return the positions of a draw's train items, then of its test items."""
        train = stratified_order(self.labels_I[: self.num_train].tolist(), seed)[:num_train]
        tests = self.labels_I[self.num_train : self.num_train + self.num_test].tolist()
        return np.array([*train, *(self.num_train + position for position in stratified_order(tests, seed)[:num_test])])

    def fresh_contributions(self, drawn: np.ndarray, num_train: int, proxy: Proxy) -> np.ndarray:
        """Return what each fresh item contributes to each candidate's true score, `[C, I]`; the score is their mean."""
        train, fresh = drawn[:num_train], np.arange(self.num_train + self.num_test, len(self.labels_I))
        scores = score_candidates(
            proxy,
            [features_ID[train] for features_ID in self.features_CID],
            self.labels_I[train],
            [features_ID[fresh] for features_ID in self.features_CID],
            self.labels_I[fresh],
            0,
        )
        return np.stack([score.contribution_I for score in scores])


@dataclass(frozen=True)
class Row:
    """What a method took on a draw, and what its answer lost: by all fresh items, by halves of them, and as it said."""

    image_forwards: float
    regret: float
    regret_at_least: float
    stated: float | None


@dataclass
class PoolSource:
    """A draw's features as a source for a contest, which counts the image-forwards that they would take."""

    pool: Pool
    drawn: np.ndarray
    work: Work = field(default_factory=Work)
    image_forwards: float = 0.0
    dtype: torch.dtype = torch.float32
    fingerprint: str = ""

    def gather(
        self,
        candidates: Collection[int],
        positions: Sequence[int],
        *,
        is_last: bool,  # noqa: ARG002 - the protocol's
        border: Border | None = None,  # noqa: ARG002
    ) -> Gathered:
        """Return the candidates' features of the draw's items at these positions."""
        self.image_forwards += len(positions) * whole_models(self.pool.tree, candidates)
        rows = self.drawn[list(positions)]
        return Gathered({number: self.pool.features_CID[number][rows] for number in candidates}, {})

    def keep(self, candidates: Collection[int]) -> None:
        """Do nothing: there are no blocks."""


def main() -> None:
    """Announce what is measured, measure it, and print one JSON line."""
    options = parse_options()
    say(f"{options.draws} draws of {describe_items(options)}; {describe_snapshots(options)}")
    say(f"truth: scores on {options.fresh} fresh items")
    with tempfile.TemporaryDirectory(prefix="bench_tolerance-") as temporary:
        pool = open_pool(options, Path(options.dir or temporary))
        figures = measure(options, pool)
    for name, found in figures.items():
        say(
            f"{name}: {found['image_forwards']:,.0f} image-forwards, {found['share_of_shared']:.1%} of shared's; "
            f"regret {found['mean_regret']:.4f}, 95 % up to {found['regret_95']:.4f}, at least "
            f"{found['mean_regret_at_least']:.4f}; stated {found['stated_loss']:.4f}"
        )
    sys.stdout.write(json.dumps(facts(options) | {"draws": options.draws, "methods": figures}) + "\n")


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_question(parser, snapshots=36, image_size=64, train=800, test=200)
    parser.add_argument("--draws", type=int, default=40, help="draws of items")
    parser.add_argument("--fresh", type=int, default=16000, help="items that true scores are measured on")
    parser.add_argument("--tolerances", default=str(DEFAULT_TOLERANCE), help="a list with commas")
    parser.add_argument("--proxy", choices=get_args(Proxy), default="linear", help="the probe")
    return parser.parse_args()


def say(text: str) -> None:
    """Write progress to stderr."""
    sys.stderr.write(f"tolerance: {text}\n")


def open_pool(options: argparse.Namespace, folder: Path) -> Pool:
    """Return the pool; compute its features where `folder` does not have them."""
    store = Store.open(make_store(options, folder))
    candidates = find_candidates(store, None, options.image_size)
    tree = build_tree(candidates, sharing=True)
    num_train, num_test = POOL * options.train, POOL * options.test
    path = folder / f"features-{store.path.name}-{options.dataset}-{num_train}-{num_test}-{options.fresh}.npz"
    if not path.exists():
        shapes = ShapesConfig(
            image_size=options.image_size + options.image_size // 7,
            num_train=num_train,
            num_val=num_test,
            num_test=options.fresh,
        )
        search_options = SearchOptions(
            method="shared", image_size=options.image_size, data_dir=folder / "tolerance-data", shapes=shapes
        )
        dataset = open_dataset(options.dataset, search_options.data_dir, shapes)
        splits = [item for split in ("train", "val", "test") for item in dataset.splits[split]]
        caches = {resizing: PixelCache.open(splits, dataset, resizing) for resizing in resizings_of(tree)}
        for cache in caches.values():
            cache.load(range(len(splits)))
        labels_I = np.array([item.label for item in splits])
        items = ProbeItems(caches, tuple(range(len(splits))), labels_I[:num_train], labels_I[num_train:], 0.0)
        with open_executor(Setup(store.path, options.dataset, search_options), store, tree, items, Work()) as executor:
            found = executor.gather(range(len(candidates)), range(len(splits)), is_last=True)
        np.savez(
            path, features=np.stack([found.features[number] for number in range(len(candidates))]), labels=labels_I
        )
    kept = np.load(path)
    return Pool(tree, kept["features"], kept["labels"], num_train, num_test)


def resizings_of(tree: PrefixTree) -> set[Resizing]:
    """Return the ways in which images are resized for the candidates."""
    return {candidate.preprocessing.resizing for candidate in tree.candidates}


def measure(options: argparse.Namespace, pool: Pool) -> dict[str, dict[str, Any]]:
    """Run `shared`, and `nested` with each tolerance, on every draw."""
    settings: dict[str, dict[str, Any]] = {"shared": {"method": "shared"}} | {
        f"nested {tolerance}": {"method": "nested", "tolerance": float(tolerance)}
        for tolerance in options.tolerances.split(",")
    }
    rows: dict[str, list[Row]] = {name: [] for name in settings}
    for seed in range(1, options.draws + 1):
        drawn = pool.draw(options.train, options.test, seed)
        contribution_CI = pool.fresh_contributions(drawn, options.train, options.proxy)
        for name, asked in settings.items():
            search_options = SearchOptions(**asked, proxy=options.proxy, seed=seed)
            contest, source = run_contest(pool, drawn, options.train, search_options)
            winner = contest.ranking()[0].snapshot
            number = [candidate.snapshot for candidate in pool.tree.candidates].index(winner)
            regrets = regret_of(contribution_CI, number)
            rows[name].append(Row(source.image_forwards, *regrets, contest.expected_loss))
        say(f"draw {seed} of {options.draws}: " + ", ".join(f"{name} {rows[name][-1].regret:.3f}" for name in rows))
    return {name: summarise(found, rows["shared"]) for name, found in rows.items()}


def regret_of(contribution_CI: np.ndarray, winner: int) -> tuple[float, float]:
    """Return what the winner loses to the best candidate: too much by the luck of the fresh items, and too little."""
    behind_C = contribution_CI.mean(axis=1) - contribution_CI[winner].mean()
    halves = [half_CI.mean(axis=1) for half_CI in (contribution_CI[:, ::2], contribution_CI[:, 1::2])]
    crossed = [other_C[one_C.argmax()] - other_C[winner] for one_C, other_C in (halves, halves[::-1])]
    return float(behind_C.max()), float(np.mean(crossed))


def run_contest(pool: Pool, drawn: np.ndarray, num_train: int, options: SearchOptions) -> tuple[Contest, PoolSource]:
    """Run a method's contest on a draw's features."""
    labels_I = pool.labels_I[drawn]
    items = ProbeItems({}, tuple(range(len(drawn))), labels_I[:num_train], labels_I[num_train:], 0.0)
    source = PoolSource(pool, drawn)
    contest = Contest(pool.tree, source, items, options, CPU)
    rungs = plan_rungs(options.method, len(pool.tree.candidates), num_train, len(drawn) - num_train)
    for rung, following in itertools.zip_longest(rungs, rungs[1:]):
        contest.run_rung(rung, following)
        if contest.stopped:
            break
    return contest, source


def summarise(rows: Sequence[Row], shared: Sequence[Row]) -> dict[str, Any]:
    """Average over the draws, and compare stated with actual losses, by the half that states less and the other."""
    forwards, regret, at_least, stated = (
        np.array([np.nan if value is None else value for value in column])
        for column in zip(*map(astuple, rows), strict=True)
    )
    halves = np.array_split(np.argsort(stated, kind="stable"), 2)
    return {
        "image_forwards": forwards.mean(),
        "share_of_shared": float((forwards / [row.image_forwards for row in shared]).mean()),
        "mean_regret": regret.mean(),
        "regret_error": standard_error(regret),
        "regret_95": float(np.quantile(regret, 0.95)),
        "mean_regret_at_least": at_least.mean(),
        "stated_loss": stated.mean(),
        "calibration": [
            {
                "num": len(half),
                "stated": stated[half].mean(),
                "actual": regret[half].mean(),
                "actual_at_least": at_least[half].mean(),
                "actual_error": standard_error(regret[half]),
            }
            for half in halves
            if len(half)
        ],
        "rows": [list(astuple(row)) for row in rows],
    }


def standard_error(values: np.ndarray) -> float | None:
    """Return the standard error of the mean; None of a single value."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


if __name__ == "__main__":
    main()
