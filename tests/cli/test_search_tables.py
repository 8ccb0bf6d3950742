"""Tables of search and bench: their contents, not their looks."""

from types import SimpleNamespace

from raysnap.cli.search_tables import answered_line, cells_table, methods_table, noise_lines, overrun_line, read_line
from raysnap.runs.questions import gain_text


def bench_cell(method: str, cache: str, median_s: float, **keys):
    axes = dict.fromkeys(("group", "where", "num_train", "num_test", "budget_bytes"))
    axes |= {"store": "stores/a", "dataset": "pets", "image_size": 32, "proxy": "linear"}
    counters = {"flops": 1e9, "block_item_passes": 10, "block_bytes_read": 100, "disk_bytes_read": 2_000_000}
    outcome = {"num_done": 3, "iqr_s": 0.2, "page_cache": cache, "best": "x", "best_score": 0.5}
    cell = f"{cache}.pets.linear.{method}"
    named = {"cell": cell, "method": method, "cache": cache, "median_s": median_s, "is_noisy": False, "noise": []}
    return axes | counters | outcome | named | keys


def columns(table) -> list[dict[str, str]]:
    """Return the table's rows by column title."""
    cells = [list(column.cells) for column in table.columns]
    titles = [column.header for column in table.columns]
    return [dict(zip(titles, row, strict=True)) for row in zip(*cells, strict=True)]


def test_speed_ups_are_against_the_slowest_per_question():
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


def test_a_cell_that_is_not_cold_differs_from_a_noisy_one():
    noisy = {"is_noisy": True, "noise": ["run 1: other work", "run 2: other work"]}
    cells = [
        bench_cell("baseline", "cold", 4.0),
        bench_cell("nested", "cold", 1.0, page_cache="warm", **noisy),
        bench_cell("shift", "cold", 1.0, **noisy),
    ]
    assert [row["noise"] for row in columns(methods_table(cells))] == ["", "not cold", "noisy"]
    assert noise_lines(cells).splitlines() == [
        "cold.pets.linear.nested: run 1: other work (and 1 more)",
        "cold.pets.linear.shift: run 1: other work (and 1 more)",
    ]
    assert noise_lines(cells[:1]) == ""


def test_planned_work_marks_averages_and_what_is_unknown():
    cells = [SimpleNamespace(name=name, repeats=3) for name in "abc"]
    exact = SimpleNamespace(num_candidates=2, num_items=10, image_forwards=20.0, flops=1e9, is_exact=True)
    works = [exact, SimpleNamespace(**vars(exact) | {"is_exact": False}), None]
    rows = columns(cells_table(cells, works))
    assert [row["image-forwards"] for row in rows] == ["20", "~20", "–"]
    assert [row["candidates"] for row in rows] == ["2", "2", "–"]


def test_only_files_that_someone_may_miss_are_told():
    def left_out(num_files, *, is_expected):
        return {"path": "a", "reason": "why", "num_files": num_files, "is_expected": is_expected}

    account = {"dataset": "pets", "num_images": {"train": 8, "val": 2}, "num_left_out": 4, "bad": []}
    record, photos = left_out(1, is_expected=True), left_out(3, is_expected=False)
    assert read_line(account | {"left_out": [record]}) == "10\u00a0images of pets: train 8, val 2"
    assert read_line(account | {"left_out": [record, photos]}).endswith("val 2; 3\u00a0files left out")


def test_a_search_that_overran_its_time_says_by_how_much():
    assert overrun_line(4.9, 5.0) == ""
    assert "budget of 5.00\u00a0s was exceeded by 5.40\u00a0s" in overrun_line(10.4, 5.0)


def test_a_gain_that_may_be_luck_is_called_so():
    gain = {"value": 0.05, "low": 0.01, "high": 0.09, "num_scored": 40}
    said = "The first scores 0.050 more than that one (+0.010 to +0.090), on the same 40\u00a0items"
    assert gain_text(gain) == said
    assert gain_text(gain | {"low": -0.01}).endswith("; that may be luck")
    assert "scores 0.020 less than" in gain_text(gain | {"value": -0.02})


def test_an_answer_of_an_earlier_search_says_whose_it_is():
    result = {"answered": "2026-01-31T12:00:00Z", "forecast": {"came": {"timings_s": {"total": 11.3}}}}
    line = answered_line(result)
    assert "2026-01-31T12:00:00Z, which took 11.3" in line and "--feature-cache 0" in line
