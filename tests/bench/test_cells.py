"""A benchmark's cells: every combination once, each by a name of its own; and the published benchmark as written."""

from pathlib import Path

import pytest

from raysnap.bench.cells import SyntheticSet, expand, find_sets, plan_bench
from raysnap.config.bench import BenchConfig
from raysnap.config.jobs import SyntheticRecipe
from raysnap.config.load import find_config, load_config
from raysnap.errors import RaysnapError

RECIPE = {"architectures": ["resnet18"], "num_snapshots": 3, "num_classes": 4, "image_size": 32}


def config(tmp_path: Path, **keys) -> BenchConfig:
    given = {"datasets": "shapes-colour-a", "store": "made", "synthetic_sets": {"made": RECIPE}, "image_size": 32}
    return BenchConfig(**given | {"synthetic_dir": tmp_path / "synthetic", "data_dir": tmp_path / "data"} | keys)


def test_every_combination_is_a_cell_grouped_by_question(tmp_path):
    cells = expand(config(tmp_path, methods=["shift", "nested"], cache=["cold", "warm"], image_size=[32, 64]))
    assert [cell.name for cell in cells] == [
        f"{size}px.{cache}.shapes-colour-a.linear.{method}"
        for size in (32, 64)
        for method in ("shift", "nested")
        for cache in ("cold", "warm")
    ]
    assert len({cell.question for cell in cells}) == 2
    assert cells[0].axes["cache"] == "cold"


def test_a_plain_benchmarks_cells_go_by_dataset_proxy_and_method(tmp_path):
    assert [cell.name for cell in expand(config(tmp_path, methods="nested"))] == ["shapes-colour-a.linear.nested"]


def test_cells_of_groups_go_by_their_group_too(tmp_path):
    groups = {"few": {"num_train": [10, 20], "num_test": 5}, "bounded": {"budget_bytes": [None, 10**9]}}
    names = [cell.name for cell in expand(config(tmp_path, groups=groups, methods="nested"))]
    assert names == [
        "few.10+5.shapes-colour-a.linear.nested",
        "few.20+5.shapes-colour-a.linear.nested",
        "bounded.no-budget.shapes-colour-a.linear.nested",
        "bounded.1000000000B.shapes-colour-a.linear.nested",
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"store": ["a/store", "b/store"]}, r"cell 'store\.shapes-colour-a\.linear\.baseline': names both"),
        ({"datasets": ["x/pets", "y/pets"]}, r"rename a folder"),
        ({"store": "mde"}, r"mde: expected a model store, found nothing there"),
        ({"datasets": "shapes-color-a"}, r"did you mean 'shapes-colour-a'\?"),
        ({"synthetic_sets": {"made": RECIPE | {"architectures": ["resnet19"]}}}, r"resnet19"),
        ({"synthetic_sets": {"made": RECIPE | {"base": {"weights": "nowhere"}}}}, r"base\.weights 'nowhere'"),
    ],
)
def test_a_benchmark_that_can_not_run_writes_nothing(tmp_path, keys, message):
    with pytest.raises(RaysnapError, match=message):
        plan_bench(config(tmp_path, **keys))
    assert not list(tmp_path.iterdir())


def test_only_the_sets_that_a_grid_names_are_looked_for(tmp_path):
    sets = {"made": RECIPE, "other": RECIPE | {"architectures": ["resnet19"]}}
    assert list(find_sets(config(tmp_path, synthetic_sets=sets))) == ["made"]
    assert len(plan_bench(config(tmp_path, synthetic_sets=sets))) == 4


def test_a_sets_folder_follows_from_its_recipe_alone(tmp_path):
    path = SyntheticSet.of(SyntheticRecipe(**RECIPE), tmp_path).path
    assert path.parent == tmp_path
    assert path.name.startswith("resnet18-twenty_five_percent-3-")
    assert SyntheticSet.of(SyntheticRecipe(**RECIPE | {"seed": 0}), tmp_path).path == path
    assert SyntheticSet.of(SyntheticRecipe(**RECIPE | {"seed": 1}), tmp_path).path != path


def test_the_published_benchmark_asks_what_the_paper_asks():
    config = load_config(find_config("search_bench"), [], BenchConfig)
    cells = expand(config)
    distributions = {recipe.retrain.distribution for recipe in config.synthetic_sets.values()}
    assert distributions == {"top_layers", "twenty_five_percent", "fifty_percent"}
    totals = {cell.options.num_train + cell.options.num_test for cell in cells}
    assert {1000, 2000, 4000, 8000} <= totals
    assert all(cell.options.num_train == 4 * cell.options.num_test for cell in cells)
    assert {cell.dataset for cell in cells} == {"imagenette", "image-woof"}
    assert {5 * 10**9, 10 * 10**9, 64 * 10**9} <= {cell.options.budget_bytes for cell in cells}
    assert {cell.detail for cell in cells} == {"end_to_end", "rungs", "steps", "step_details"}
    assert any(
        len(find_sets(config)[cell.store].recipe.architectures) > 1 for cell in cells if cell.store in find_sets(config)
    )
    assert any(cell.store not in config.synthetic_sets for cell in cells)
    assert all(grid.title for grid in config.groups.values())
