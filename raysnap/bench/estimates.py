"""Estimate what a benchmark's cells will compute, before their stores are made or any tensor is loaded.

`baseline` and `shared` are counted exactly. Which candidates the rungs of the others keep is not known in advance, so
their work is the average for candidates kept at random; `nested` may keep more or fewer, and stop earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from raysnap.bench.cells import Cell, SyntheticSet, find_sets
from raysnap.config.bench import BenchConfig
from raysnap.config.choices import Method
from raysnap.config.folders import StorePath
from raysnap.config.parts import ShapesConfig
from raysnap.datasets.dataset import find_dataset, open_dataset
from raysnap.datasets.splits import VAL_FRACTION, probe_splits
from raysnap.models.block_facts import block_shapes
from raysnap.planning.synthetic import draw_descents
from raysnap.search.plan.rungs import Rung, plan_rungs, shares_prefixes
from raysnap.search.plan.tree import Candidate, PrefixTree, build_tree, find_misfit, needed_nodes
from raysnap.search.plan.workload import image_forwards
from raysnap.store.manifest import BlockEntry
from raysnap.store.preprocessing import Preprocessing

NUM_DRAWS = 5


@dataclass(frozen=True)
class CellWork:
    """What one run of a cell will compute.

    Attributes:
        num_candidates: snapshots that it ranks.
        num_items: train and test items.
        image_forwards: images run through whole models, parts of models counted as fractions.
        flops: FLOPs of these.
        is_exact: whether the work is known, not an average for candidates kept at random.
    """

    num_candidates: int
    num_items: int
    image_forwards: float
    flops: float
    is_exact: bool


def estimate_work(config: BenchConfig, cells: Sequence[Cell]) -> list[CellWork | None]:
    """Estimate what each cell will compute; None where `where` filters a set that is not made yet."""
    sets: dict[StorePath, SyntheticSet] = {
        synthetic.path / "store": synthetic for synthetic in find_sets(config).values()
    }

    candidates: dict[tuple[Any, ...], tuple[Candidate, ...] | None] = {}
    item_counts: dict[tuple[Any, ...], tuple[int, int]] = {}
    works: list[CellWork | None] = []
    work_of = cache(_work_of)
    for cell in cells:
        which = (cell.store_dir, cell.options.where, cell.options.image_size)
        if which not in candidates:
            candidates[which] = _find_candidates(cell, sets.get(cell.store_dir))
        if cell.question not in item_counts:
            item_counts[cell.question] = _count_items(cell)
        found = candidates[which]
        seed, counts = cell.options.seed, item_counts[cell.question]
        works.append(work_of(found, cell.options.method, *counts, seed) if found else None)
    return works


def _find_candidates(cell: Cell, synthetic: SyntheticSet | None) -> tuple[Candidate, ...] | None:
    """Return the candidates that will run; None where `where` filters a set that is not made yet."""
    if synthetic is None or synthetic.is_made:
        return tuple(candidate for candidate in cell.candidates() if find_misfit(candidate) is None)
    return None if cell.options.where else planned_candidates(synthetic, cell.image_size)


def _work_of(candidates: tuple[Candidate, ...], method: Method, num_train: int, num_test: int, seed: int) -> CellWork:
    rungs = plan_rungs(method, len(candidates), num_train, num_test)
    tree = build_tree(candidates, sharing=shares_prefixes(method))
    rng = np.random.default_rng(seed)
    draws = [_draw_entrants(rungs, len(candidates), rng) for _ in range(NUM_DRAWS if len(rungs) > 1 else 1)]
    return CellWork(
        num_candidates=len(candidates),
        num_items=num_train + num_test,
        image_forwards=float(np.mean([image_forwards(tree, rungs, draw) for draw in draws])),
        flops=float(np.mean([_flops(tree, rungs, draw) for draw in draws])),
        is_exact=len(rungs) == 1,
    )


def planned_candidates(synthetic: SyntheticSet, image_size: int) -> tuple[Candidate, ...]:
    """Return the candidates that a set will hold once it is made: they share blocks alike, under other digests."""
    planned: list[Candidate] = []
    preprocessing = Preprocessing.cropping(image_size)
    for descent in draw_descents(synthetic.config):
        shapes = block_shapes(descent.architecture, image_size)[:-1]
        kept: tuple[BlockEntry, ...] = ()
        if descent.parent is not None:
            kept = planned[descent.parent].blocks[: len(shapes) - descent.retrain_index]
        own = tuple(
            BlockEntry(shape.name, f"{descent.number:032x}{index:032x}", shape.num_parameter_bytes)
            for index, shape in enumerate(shapes[len(kept) :])
        )
        name = f"{descent.number + 1:03d}"
        planned.append(Candidate(name, name, descent.architecture, preprocessing, kept + own))
    return tuple(planned)


def _count_items(cell: Cell) -> tuple[int, int]:
    """Count the train and test items of a search; of a dataset that is not drawn yet, those it will have."""
    options = cell.options
    if find_dataset(cell.data, options.data_dir, options.shapes) is not None:
        dataset = open_dataset(cell.data, options.data_dir, options.shapes)
        train, test = probe_splits(
            dataset, options.seed, options.num_train, options.num_test, spares_test=options.spares_test
        )
        return len(train), len(test)
    shapes = options.shapes or ShapesConfig()
    num_train, num_test = shapes.num_train, shapes.num_val or shapes.num_test
    if not num_test:
        num_test = max(1, round(VAL_FRACTION * num_train))
        num_train -= num_test
    return min(num_train, options.num_train or num_train), min(num_test, options.num_test or num_test)


def _draw_entrants(rungs: Sequence[Rung], num_candidates: int, rng: np.random.Generator) -> list[list[int]]:
    """Draw the candidates that enter each rung, those kept at random."""
    order = rng.permutation(num_candidates).tolist()
    counts = [num_candidates, *(rung.num_kept for rung in rungs[:-1])]
    return [order[:count] for count in counts]


def _flops(tree: PrefixTree, rungs: Sequence[Rung], entrants: Sequence[Sequence[int]]) -> float:
    """Return the FLOPs of the blocks that run, over all rungs."""
    total = 0.0
    for rung, candidates in zip(rungs, entrants, strict=True):
        for index in needed_nodes(tree, candidates):
            node = tree.nodes[index]
            shapes = block_shapes(node.architecture, node.preprocessing.image_size)
            total += rung.num_items * shapes[node.block_index].flops
    return total
