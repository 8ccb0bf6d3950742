"""Tables that commands show: what stands in them, not how it looks."""

from types import SimpleNamespace

from raysnap.cli.search_tables import cells_table, methods_table, noise_lines
from raysnap.cli.training_tables import trained_table
from tests.support.terminal import shown


def trial(name: str, dataset: str, val: float | None, test: float | None, architecture: str = "resnet18"):
    return SimpleNamespace(
        name=name, dataset=dataset, architecture=architecture, val_accuracy=val, test_accuracy=test, total_s=1.5
    )


def test_trained_snapshots_are_summed_up_by_dataset_and_architecture_with_the_best_on_val():
    trials = [
        trial("003", "dogs", 0.5, 0.9),
        trial("001", "cars", 0.25, None),
        trial("004", "dogs", 0.75, 0.6),
        trial("005", "dogs", None, None),
        trial("006", "dogs", None, None, "vit_b_32"),
    ]
    _, *rows = [[cell.strip() for cell in row] for row in shown(trained_table(trials))]
    assert rows == [
        ["cars", "resnet18", "1", "0.250", "0.250", "–", "001", "1.50\u00a0s"],
        ["dogs", "resnet18", "3", "0.625", "0.750", "0.600", "004", "4.50\u00a0s"],
        ["dogs", "vit_b_32", "1", "–", "–", "–", "–", "1.50\u00a0s"],
    ]


def bench_cell(method: str, cache: str, median_s: float, **keys):
    axes = dict.fromkeys(("group", "where", "num_train", "num_test", "budget_bytes"))
    axes |= {"store": "stores/a", "dataset": "pets", "image_size": 32, "proxy": "linear"}
    counters = {"flops": 1e9, "block_item_passes": 10, "block_bytes_read": 100, "disk_bytes_read": 2_000_000}
    outcome = {"num_done": 3, "iqr_s": 0.2, "page_cache": cache, "best": "x", "best_score": 0.5}
    cell = f"{cache}.pets.linear.{method}"
    named = {"cell": cell, "method": method, "cache": cache, "median_s": median_s, "is_noisy": False, "noise": []}
    return axes | counters | outcome | named | keys


def columns(table) -> list[dict[str, str]]:
    """The table's rows by column title."""
    cells = [list(column.cells) for column in table.columns]
    titles = [column.header for column in table.columns]
    return [dict(zip(titles, row, strict=True)) for row in zip(*cells, strict=True)]


def test_speed_ups_are_against_the_slowest_on_the_same_question_in_the_same_cache_state():
    cells = [
        bench_cell("baseline", "cold", 4.0),
        bench_cell("nested", "cold", 1.0),
        bench_cell("baseline", "warm", 2.0),
        bench_cell("nested", "warm", 1.0),
    ]
    rows = columns(methods_table(cells))
    assert [row["speed-up"] for row in rows] == ["1.0×", "4.0×", "1.0×", "2.0×"]
    assert [row["cache"] for row in rows] == ["cold", "cold", "warm", "warm"]
    assert rows[0]["spread"] == "± 2\u00a0%"
    assert not {"store", "image size", "group", "noise"} & rows[0].keys()


def test_a_cell_that_is_not_cold_though_asked_for_is_told_from_one_that_is_noisy():
    doubted = {"is_noisy": True, "noise": ["run 1: other work", "run 2: other work"]}
    cells = [
        bench_cell("baseline", "cold", 4.0),
        bench_cell("nested", "cold", 1.0, page_cache="warm", **doubted),
        bench_cell("shift", "cold", 1.0, **doubted),
    ]
    assert [row["noise"] for row in columns(methods_table(cells))] == ["", "not cold", "noisy"]
    assert noise_lines(cells).splitlines() == [
        "cold.pets.linear.nested: run 1: other work (and 1 more)",
        "cold.pets.linear.shift: run 1: other work (and 1 more)",
    ]
    assert noise_lines(cells[:1]) == ""


def test_planned_work_is_marked_where_it_is_an_average_and_left_out_where_nothing_is_known():
    cells = [SimpleNamespace(name=name, repeats=3) for name in "abc"]
    exact = SimpleNamespace(num_candidates=2, num_items=10, image_forwards=20.0, flops=1e9, is_exact=True)
    works = [exact, SimpleNamespace(**vars(exact) | {"is_exact": False}), None]
    rows = columns(cells_table(cells, works))
    assert [row["image-forwards"] for row in rows] == ["20", "~20", "–"]
    assert [row["candidates"] for row in rows] == ["2", "2", "–"]
