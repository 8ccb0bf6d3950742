"""Simulate searches on many workers, dealt to them by the partitioner that deals real ones.

`benchmarks/simulate_search.py [--snapshots N] [--workers N] [--architectures A,B] [--method M] [--items N] ...`:
lineages are drawn as `raysnap synthesize` draws them, without a tensor, and so are the candidates kept by each rung.
Time is counted by rates, of one CPU core unless set otherwise. Settings are printed first, on stderr; the last line, on
stdout, is one JSON document. `ratio` is the makespan over its bound: total work over workers, or the longest path.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from typing import get_args

import numpy as np

from raysnap.config.choices import Method
from raysnap.config.jobs import SynthesizeConfig
from raysnap.config.parts import RetrainConfig
from raysnap.models.block_facts import block_shapes
from raysnap.planning.synthetic import draw_descents
from raysnap.search.plan.costs import Rates
from raysnap.search.plan.rungs import Rung, plan_rungs, shares_prefixes
from raysnap.search.plan.simulation import simulate
from raysnap.search.plan.tree import Candidate, build_tree
from raysnap.store.manifest import BlockEntry
from raysnap.store.preprocessing import Preprocessing

GOAL_RATIO = 1.1


def main() -> None:
    """Announce what is simulated, simulate it, and print one JSON line."""
    options = parse_options()
    config = SynthesizeConfig(
        seed=options.seed,
        num_snapshots=options.snapshots,
        architectures=tuple(options.architectures.split(",")),
        image_size=options.image_size,
        retrain=RetrainConfig(distribution=options.distribution),
    )
    rates = Rates(
        flops_per_s=options.flops_per_s,
        read_bytes_per_s=options.read_bytes_per_s,
        handover_bytes_per_s=options.handover_bytes_per_s,
    )
    say(f"{options.method} over {options.snapshots} snapshots of {options.architectures} on {options.workers} workers")
    say(f"rates of a worker: {rates}; goal: at most {GOAL_RATIO:g} x the bound")
    started = time.perf_counter()
    candidates = draw_candidates(config)
    tree = build_tree(candidates, sharing=shares_prefixes(options.method))
    num_test = options.items // 5
    rungs = plan_rungs(options.method, len(candidates), options.items - num_test, num_test)
    planned = time.perf_counter()
    simulated = simulate(tree, rungs, draw_entrants(rungs, len(candidates), options.seed), options.workers, rates)
    makespan_s, bound_s = sum(rung.makespan_s for rung in simulated), sum(rung.bound_s for rung in simulated)
    figures = {
        "num_snapshots": options.snapshots,
        "num_workers": options.workers,
        "num_nodes": len(tree.nodes),
        "makespan_s": makespan_s,
        "bound_s": bound_s,
        "ratio": makespan_s / bound_s,
        "goal_ratio": GOAL_RATIO,
        "plan_s": planned - started,
        "simulate_s": time.perf_counter() - planned,
        "rungs": [asdict(rung) for rung in simulated],
    }
    sys.stdout.write(json.dumps(figures) + "\n")


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    usual = Rates()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--snapshots", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=256)
    parser.add_argument("--architectures", default="resnet18", help="torchvision builder names, with commas between")
    parser.add_argument("--distribution", default="twenty_five_percent", help="of the retrain indices")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--method", choices=get_args(Method), default="shared")
    parser.add_argument("--items", type=int, default=1000, help="of which a fifth are test items")
    parser.add_argument("--flops-per-s", type=float, default=usual.flops_per_s)
    parser.add_argument("--read-bytes-per-s", type=float, default=usual.read_bytes_per_s)
    parser.add_argument("--handover-bytes-per-s", type=float, default=usual.handover_bytes_per_s)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def draw_candidates(config: SynthesizeConfig) -> list[Candidate]:
    """Draw the candidates that the job would make; a block's digest says which snapshot it belongs to."""
    candidates: list[Candidate] = []
    preprocessing = Preprocessing.cropping(config.image_size)
    for descent in draw_descents(config):
        shapes = block_shapes(descent.architecture, config.image_size)[:-1]
        kept = () if descent.parent is None else candidates[descent.parent].blocks[: -descent.retrain_index or None]
        own = tuple(
            BlockEntry(shape.name, f"{descent.number:032x}{index:032x}", shape.num_parameter_bytes)
            for index, shape in enumerate(shapes[len(kept) :], start=len(kept))
        )
        name = f"{descent.number:05d}"
        candidates.append(Candidate(name, name, descent.architecture, preprocessing, kept + own))
    return candidates


def draw_entrants(rungs: tuple[Rung, ...], num_candidates: int, seed: int) -> list[list[int]]:
    """Draw the candidates that enter each rung, those kept at random."""
    order = np.random.default_rng(seed).permutation(num_candidates).tolist()
    return [order, *(order[: rung.num_kept] for rung in rungs[:-1])]


def say(line: str) -> None:
    """Write progress to stderr."""
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    main()
