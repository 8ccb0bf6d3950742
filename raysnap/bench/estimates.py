"""What a benchmark's cells will compute, before any store of theirs is made or any tensor is in hand.

`baseline` and `shared` are counted exactly. Whom the rungs of the others keep is not known before they ran, so their
work is that of candidates kept by lot, on average; `nested` may keep more than its rungs ask for, and take longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from raysnap.bench.cells import Cell, SyntheticSet, find_sets
from raysnap.config.bench import BenchConfig
from raysnap.datasets.dataset import find_dataset, open_dataset
from raysnap.datasets.splits import VAL_FRACTION, probe_splits
from raysnap.models.block_facts import block_shapes
from raysnap.planning.synthetic import draw_descents
from raysnap.search.candidates import find_candidates
from raysnap.search.plan.rungs import Rung, plan_rungs, shares_prefixes
from raysnap.search.plan.tree import Candidate, PrefixTree, build_tree, find_misfit, keep_candidates
from raysnap.search.plan.workload import image_forwards
from raysnap.store.manifest import BlockEntry, Preprocessing
from raysnap.store.store import Store

NUM_LOTS = 5


@dataclass(frozen=True)
class CellWork:
    """What one run of a cell will compute.

    Attributes:
        num_candidates: snapshots that it ranks.
        num_items: train and test items.
        image_forwards: images run through whole models, parts counted as parts.
        flops: FLOPs of that.
        is_exact: whether that is known, or the average of lots.
    """

    num_candidates: int
    num_items: int
    image_forwards: float
    flops: float
    is_exact: bool


def estimate_work(config: BenchConfig, cells: Sequence[Cell]) -> list[CellWork | None]:
    """What each cell will compute; None where `where` filters a set that is not made yet."""
    sets = {one.path / "store": one for one in find_sets(config).values()}

    @cache
    def candidates_of(cell_store, where, image_size) -> tuple[Candidate, ...] | None:
        synthetic = sets.get(cell_store)
        if synthetic is None or synthetic.is_made:
            found = find_candidates(Store.open(cell_store), where, image_size)
            return tuple(one for one in found if find_misfit(one) is None)
        return None if where else planned_candidates(synthetic, image_size)

    @cache
    def work_of(candidates, method, num_train, num_test, seed) -> CellWork:
        rungs = plan_rungs(method, len(candidates), num_train, num_test)
        tree = build_tree(candidates, sharing=shares_prefixes(method))
        rng = np.random.default_rng(seed)
        lots = [_draw_entrants(rungs, len(candidates), rng) for _ in range(NUM_LOTS if len(rungs) > 1 else 1)]
        return CellWork(
            num_candidates=len(candidates),
            num_items=num_train + num_test,
            image_forwards=float(np.mean([image_forwards(tree, rungs, lot) for lot in lots])),
            flops=float(np.mean([_flops(tree, rungs, lot) for lot in lots])),
            is_exact=len(rungs) == 1,
        )

    counts = {cell.question: _count_items(cell) for cell in {cell.question: cell for cell in cells}.values()}
    found = [candidates_of(cell.store_dir, cell.where, cell.image_size) for cell in cells]
    return [
        work_of(candidates, cell.method, *counts[cell.question], cell.seed) if candidates else None
        for cell, candidates in zip(cells, found, strict=True)
    ]


def planned_candidates(synthetic: SyntheticSet, image_size: int) -> tuple[Candidate, ...]:
    """The candidates that a set will hold once it is made: they share blocks as those will, under other digests."""
    planned: list[Candidate] = []
    preprocessing = Preprocessing.cropping(image_size)
    for descent in draw_descents(synthetic.config):
        shapes = block_shapes(descent.architecture, image_size)[:-1]
        num_kept = 0 if descent.parent is None else len(shapes) - descent.retrain_index
        kept = planned[descent.parent].blocks[:num_kept] if num_kept else ()
        own = tuple(
            BlockEntry(shape.name, f"{descent.number:032x}{index:032x}", shape.num_parameter_bytes)
            for index, shape in enumerate(shapes[num_kept:])
        )
        name = f"{descent.number + 1:03d}"
        planned.append(Candidate(name, name, descent.architecture, preprocessing, kept + own))
    return tuple(planned)


def _count_items(cell: Cell) -> tuple[int, int]:
    """How many train and test items a search will look at; of a dataset that is not drawn yet, what it will have."""
    if find_dataset(cell.data, cell.data_dir) is not None:
        dataset = open_dataset(cell.data, cell.data_dir, cell.shapes)
        train, test = probe_splits(dataset, cell.seed, cell.num_train, cell.num_test)
        return len(train), len(test)
    shapes = cell.shapes
    num_train, num_test = shapes.num_train, shapes.num_val or shapes.num_test
    if not num_test:
        num_test = max(1, round(VAL_FRACTION * num_train))
        num_train -= num_test
    return min(num_train, cell.num_train or num_train), min(num_test, cell.num_test or num_test)


def _draw_entrants(rungs: Sequence[Rung], num_candidates: int, rng: np.random.Generator) -> list[list[int]]:
    """Who enters each rung, where the kept are drawn by lot."""
    order = rng.permutation(num_candidates).tolist()
    counts = [num_candidates, *(rung.num_kept for rung in rungs[:-1])]
    return [order[:count] for count in counts]


def _flops(tree: PrefixTree, rungs: Sequence[Rung], entrants: Sequence[Sequence[int]]) -> float:
    """FLOPs of the blocks that run, over all rungs."""
    total = 0.0
    for rung, candidates in zip(rungs, entrants, strict=True):
        num_items = rung.train_stop - rung.train_start + rung.test_stop - rung.test_start
        for index in keep_candidates(tree, candidates):
            node = tree.nodes[index]
            shapes = block_shapes(node.architecture, node.preprocessing.image_size)
            total += num_items * shapes[node.block_index].flops
    return total
