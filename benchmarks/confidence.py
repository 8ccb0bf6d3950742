"""Measure what the confidence of `nested` buys: how often its winner is that of `shared`, and at what part of its work.

`benchmarks/confidence.py [--architecture NAME] [--snapshots N] [--distribution NAME] [--base WEIGHTS] [--store STORE]
[--dataset TASK] [--image-size PX] [--train N] [--test N] [--draws N] [--confidences A,B] [--dir DIR]`: synthetic
snapshots hardly differ and are the hardest case. Each draw takes different items of a pool; features are computed once
for all draws, and image-forwards are those that the rungs would take without the cache. What is measured is announced
first, on stderr; the last line, on stdout, is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from search import add_question, describe_items, describe_snapshots, facts, make_store

from raysnap.config.parts import ShapesConfig
from raysnap.search import SearchResult, search
from raysnap.search.candidates import find_candidates
from raysnap.search.plan.costs import shape_of
from raysnap.search.plan.tree import PrefixTree, build_tree, needed_nodes
from raysnap.store.store import Store

POOL = 2.5  # so many times the items of a draw are drawn from
CACHE_BYTES = 2**33


def main() -> None:
    """Announce what is measured, measure it, and print one JSON line."""
    options = parse_options()
    say(f"{options.draws} draws of {describe_items(options)}; {describe_snapshots(options)}")
    with tempfile.TemporaryDirectory(prefix="bench_confidence-") as temporary:
        figures = measure(options, Path(options.dir or temporary))
    for confidence, found in figures.items():
        say(
            f"{confidence}: {found['image_forwards']:,.0f} image-forwards, {found['share_of_shared']:.0%} of shared's; "
            f"as good a winner in {found['num_as_good']}, the same in {found['num_same']}; regret "
            f"{found['mean_regret']:.4f}, at most {found['max_regret']:.3f}"
        )
    document = facts(options) | {"draws": options.draws, "confidences": figures}
    sys.stdout.write(json.dumps(document) + "\n")


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_question(parser, snapshots=36, image_size=64, train=800, test=200)
    parser.add_argument("--draws", type=int, default=40, help="draws of items")
    parser.add_argument("--confidences", default="0,0.25,0.5,0.7,0.8,0.9,0.95,0.99", help="a list with commas")
    return parser.parse_args()


def say(text: str) -> None:
    """Write progress to stderr."""
    sys.stderr.write(f"confidence: {text}\n")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Measure each confidence over all draws."""
    store = make_store(options, folder)
    num_train, num_test = round(POOL * options.train), round(POOL * options.test)
    places = {
        "data_dir": folder / f"data-{options.image_size}-{num_train}-{num_test}",
        "shapes": ShapesConfig(
            image_size=options.image_size + options.image_size // 7, num_train=num_train, num_val=num_test, num_test=8
        ),
        "feature_cache_bytes": CACHE_BYTES,
        "image_size": options.image_size,
    }
    search(store, options.dataset, method="shared", **places)
    tree = build_tree(find_candidates(Store.open(store), None, options.image_size), sharing=True)
    found: dict[str, list[tuple]] = {confidence: [] for confidence in options.confidences.split(",")}
    for draw in range(1, options.draws + 1):
        asked = {"num_train": options.train, "num_test": options.test, "seed": draw, **places}
        full = search(store, options.dataset, method="shared", **asked)
        full_forwards = image_forwards(tree, full)
        scores = {one.snapshot: one.score for one in full.ranking}
        for confidence, rows in found.items():
            result = search(store, options.dataset, method="nested", confidence=float(confidence), **asked)
            winner, forwards = result.ranking[0].snapshot, image_forwards(tree, result)
            regret = full.ranking[0].score - scores[winner]
            rows.append((forwards, forwards / full_forwards, regret, winner == full.ranking[0].snapshot))
        say(f"draw {draw} of {options.draws} done")
    return {confidence: summarise(rows) for confidence, rows in found.items()}


def image_forwards(tree: PrefixTree, result: SearchResult) -> float:
    """Count what a search's rungs take without any cache, in images through a whole model, weighted by FLOPs."""
    flops = {node.index: shape_of(node).flops for node in tree.nodes}
    number_of = {candidate.snapshot: number for number, candidate in enumerate(tree.candidates)}
    total, num_before = 0, 0
    for rung in result.rungs:
        entered = [number_of[one.snapshot] for one in result.ranking if one.num_train >= rung.num_train]
        num_items = rung.num_train + rung.num_test
        total += (num_items - num_before) * sum(flops[index] for index in needed_nodes(tree, entered))
        num_before = num_items
    return total / sum(flops[index] for index in needed_nodes(tree, [0]))


def summarise(rows: Sequence[tuple[float, float, float, bool]]) -> dict[str, Any]:
    """Average over the draws; count winners that were `shared`'s, or scored as well on all items."""
    forwards, shares, regrets, is_same = zip(*rows, strict=True)
    return {
        "image_forwards": fmean(forwards),
        "share_of_shared": fmean(shares),
        "num_as_good": sum(regret == 0 for regret in regrets),
        "num_same": sum(is_same),
        "mean_regret": fmean(regrets),
        "max_regret": max(regrets),
    }


if __name__ == "__main__":
    main()
