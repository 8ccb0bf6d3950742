"""A benchmark's work before it runs: what sets not made yet will share, against what they share once they are made."""

from dataclasses import replace

import pytest

from raysnap.bench.cells import SyntheticSet, expand
from raysnap.bench.estimates import estimate_work, planned_candidates
from raysnap.bench.run_bench import make_set
from raysnap.config.bench import BenchConfig
from raysnap.config.jobs import SyntheticRecipe
from raysnap.runs.json_fields import read_rows
from raysnap.search.candidates import find_candidates
from raysnap.search.plan.tree import build_tree
from raysnap.store.store import Store

RECIPE = SyntheticRecipe(architectures=("resnet18", "mobilenet_v2"), num_snapshots=8, num_classes=4, image_size=32)


def shared_paths(candidates) -> set[frozenset[str]]:
    """For each node of the prefix tree, the names of the candidates that go through it."""
    tree = build_tree(candidates, sharing=True)
    through: list[set[str]] = [set() for _ in tree.nodes]
    for node in reversed(tree.nodes):
        through[node.index] |= {tree.candidates[number].name for number in node.candidates}
        if node.parent is not None:
            through[node.parent] |= through[node.index]
    return {frozenset(names) for names in through}


def test_planned_snapshots_share_what_made_ones_share(tmp_path):
    synthetic = SyntheticSet.of(RECIPE, tmp_path)
    planned = planned_candidates(synthetic, 32)
    make_set(synthetic, on_progress=lambda *progress: None)
    assert synthetic.is_made
    rows = read_rows(synthetic.path / "run" / "results.jsonl")
    names = {row["snapshot"]: f"{number:03d}" for number, row in enumerate(rows, start=1)}
    found = find_candidates(Store.open(synthetic.path / "store"), None, 32)
    made = [replace(one, name=names[one.snapshot]) for one in found]
    assert {one.name for one in planned} == {one.name for one in made}
    assert shared_paths(planned) == shared_paths(made)
    blocks = {one.name: [block.name for block in one.blocks] for one in made}
    assert all([block.name for block in one.blocks] == blocks[one.name] for one in planned)


@pytest.fixture
def works(tmp_path):
    config = BenchConfig(
        datasets="shapes-colour-a",
        data_dir=tmp_path,
        store="made",
        synthetic_dir=tmp_path,
        synthetic_sets={"made": RECIPE.model_copy(update={"architectures": ("resnet18",)})},
        methods=["baseline", "shared", "shift", "alsatian", "nested"],
        image_size=32,
        num_train=1000,
        shapes={"num_train": 56, "num_val": 14},
    )
    cells = expand(config)
    return {cell.options.method: work for cell, work in zip(cells, estimate_work(config, cells), strict=True)}


def test_work_is_counted_in_image_forwards_and_flops(works):
    baseline = works["baseline"]
    assert (baseline.num_candidates, baseline.num_items) == (8, 70)
    assert baseline.image_forwards == pytest.approx(8 * 70)
    assert works["shared"].image_forwards < baseline.image_forwards
    assert works["alsatian"].flops < works["shift"].flops < baseline.flops
    assert works["nested"].flops == works["shared"].flops, "so few items are one rung"
    assert [method for method, work in works.items() if work.is_exact] == ["baseline", "shared", "nested"]


def test_nothing_is_known_of_a_filtered_set_that_is_not_made(tmp_path):
    config = BenchConfig(
        datasets="shapes-colour-a",
        data_dir=tmp_path,
        store="made",
        where="retrain_index > 1",
        synthetic_dir=tmp_path,
        synthetic_sets={"made": RECIPE},
        methods="shared",
    )
    assert estimate_work(config, expand(config)) == [None]
