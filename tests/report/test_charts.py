"""Charts are well-formed, draw every datum once, and keep hostile names as text."""

import math
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysnap.humanize import bytes_unit, seconds_text, seconds_unit
from raysnap.report.charts import bars as bar_charts
from raysnap.report.charts import dots as charts
from raysnap.report.charts import lines as line_charts
from raysnap.report.charts import sweeps as sweep_charts
from raysnap.report.charts import trees as tree_charts
from raysnap.report.charts.svg import log_ticks, shorten, text_width, ticks, ticks_within

HOSTILE = "<script>alert('x')</script>&\"\x00\ud800 ‮]]>"
SEGMENTS = (bar_charts.Segment("a", "first", "phase-plan"), bar_charts.Segment("b", "second", "phase-proxy"))


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def marks(svg: str) -> list[ElementTree.Element]:
    return [element for element in parsed(svg).iter() if "mark" in element.get("class", "").split()]


def texts(svg: str) -> list[str]:
    return [element.text for element in parsed(svg).iter("text")]


def bars(name: str = "one", note: str = "") -> str:
    rows = [
        bar_charts.StackedBar(name, {"a": 1.5, "b": 0.5}, raw_totals=(2.0, 2.2, 1.9), note=note),
        bar_charts.StackedBar("two", {"a": 1.0, "b": 0.25}, raw_totals=(1.25,)),
    ]
    return bar_charts.stacked_bars(rows, SEGMENTS, f"times of {name}", "time", seconds_text, seconds_unit)


def panel(name: str = "one") -> str:
    lines = [
        line_charts.Line(name, ((1, 0.3), (2, 0.6), (3, 0.7))),
        line_charts.Line("stopped", ((1, 0.2),), is_broken=True),
        line_charts.Line("never began", (), is_broken=True),
    ]
    return line_charts.line_panel(name, "3 trials", lines, (1, 3), (0.2, 0.8), chance=0.25)


def points(name: str = "one") -> str:
    series = [
        line_charts.Series(name, ((0, 0.5, name), (2, 0.7, "b"), (2, 0.9, "c"))),
        line_charts.Series("two", ((1, 0.6, "d"),)),
    ]
    return line_charts.point_chart(series, name, "r", "accuracy", (0, 4), (0.5, 1.0), "head only")


def block_map(name: str = "one") -> str:
    rows = [
        tree_charts.MapRow(name, ("s", "x", "h1")),
        tree_charts.MapRow("two", ("s", "x", "h2")),
        tree_charts.MapRow("3", "syz"),
    ]
    return tree_charts.block_map(
        rows, [tree_charts.MapColumn(name, "1 kB"), tree_charts.MapColumn("b"), tree_charts.MapColumn("c")], name
    )


def prefix_tree(name: str = "one") -> str:
    rows = [
        tree_charts.MapRow(name, ("s", "x", "h1"), name),
        tree_charts.MapRow("two", ("s", "x", "h2"), "b"),
        tree_charts.MapRow("3", ("s", "y", "z"), "b"),
    ]
    columns = [tree_charts.MapColumn(name), tree_charts.MapColumn("b"), tree_charts.MapColumn("c")]
    return tree_charts.prefix_tree(rows, columns, name)


def dot_rows(name: str = "one") -> str:
    rows = [
        charts.DotRow(name, {name: (1.0, 0.9, 1.2), "b": (10.0, 9.0, 30.0)}),
        charts.DotRow("two", {"b": (2, 2, 2)}),
    ]
    return charts.dot_rows(rows, [name, "b"], name, "time", seconds_text)


def scatter(name: str = "one") -> str:
    return charts.scatter([(0.1, 0.2, name), (0.3, 0.4, "b")], name, name, name, (0.0, 1.0), (0.0, 1.0))


def boxes(name: str = "one") -> str:
    dots = [sweep_charts.Dot(None, y, name, is_done=y < 0.5) for y in (0.1, 0.2, 0.3, 0.9)]
    return sweep_charts.effect_boxes(name, {name: dots, "b": dots[:1], "c": []}, name, (0.0, 1.0))


def trend(name: str = "one") -> str:
    dots = [sweep_charts.Dot(10.0**-n, 0.5, name, is_best=n == 2) for n in range(5)]
    return sweep_charts.effect_points(name, dots, name, (0.0, 1.0), is_log=True)


def threads(name: str = "one") -> str:
    words, place = sweep_charts.value_axis(name, [name, "b"])
    numbers, along = sweep_charts.numeric_axis(name, [1e-4, 1e-1], is_log=True)
    told = [
        sweep_charts.Trace((place(name), along(1e-3)), name, 0.3),
        sweep_charts.Trace((place("b"), None), name, 1.0, is_best=True),
    ]
    return sweep_charts.parallel_coordinates([words, numbers], told, name)


def confusion(name: str = "one") -> str:
    return sweep_charts.confusion_matrix([name, "b"], {(0, 0): 3, (0, 1): 1, (1, 1): 2}, [4, 2], name)


CHARTS = [
    bars, panel, points, block_map, prefix_tree, dot_rows, scatter, boxes, trend, threads, confusion,
]  # fmt: skip


@pytest.mark.parametrize(
    ("chart", "num_marks"),
    [
        pytest.param(bars, 2 * 2 + 4, id="a mark per segment and raw total"),
        pytest.param(panel, 4, id="a mark per epoch"),
        pytest.param(points, 4, id="a mark per trial"),
        pytest.param(block_map, 6, id="a mark per stored block"),
        pytest.param(prefix_tree, 5 + 2 + 3, id="a mark per chain, parting and snapshot"),
        pytest.param(dot_rows, 3, id="a mark per method and question"),
        pytest.param(scatter, 2, id="a mark per candidate"),
        pytest.param(boxes, 5 + 1 + 2, id="a mark per trial, box and median"),
        pytest.param(trend, 5, id="a mark per trial of a number"),
        pytest.param(threads, 2, id="a mark per thread"),
        pytest.param(confusion, 4, id="a mark per pair of classes"),
    ],
)
def test_a_chart_has_a_mark_with_a_tooltip_for_every_datum(chart, num_marks):
    found = marks(chart())
    assert len(found) == num_marks
    assert all(mark.find("title") is not None and mark.find("title").text for mark in found)


def test_the_name_of_the_first_of_parallel_axes_is_within_the_picture():
    (head, *_) = [one for one in parsed(threads("a_name_of_20_letters")).iter("text") if one.get("class") == "head"]
    assert float(head.get("x")) >= text_width(head.text, 11.5) / 2


@pytest.mark.parametrize("chart", CHARTS)
def test_hostile_names_stay_text_in_well_formed_xml_that_utf8_can_hold(chart):
    svg = chart(HOSTILE)
    svg.encode("utf-8")
    root = parsed(svg)
    assert {element.tag for element in root.iter()} <= {
        "svg", "g", "title", "text", "rect", "line", "circle", "polyline", "path",
    }  # fmt: skip
    assert "alert('x')" in root.get("aria-label")


@given(st.text(max_size=60))
def test_any_name_gives_well_formed_xml(name):
    for chart in CHARTS:
        assert parsed(chart(name)).get("role") == "img"


def test_a_bound_is_a_line_across_its_bar_at_its_height_on_the_axis():
    row = bar_charts.StackedBar("one", {"a": 2.0}, bound=1.0)
    svg = bar_charts.stacked_bars([row], SEGMENTS, "t", "time", seconds_text, seconds_unit)
    bar, bound = marks(svg)
    assert float(bound.get("x1")) == pytest.approx(float(bar.get("x")) + float(bar.get("width")) / 2, abs=0.02)
    assert "took 2.00 × the lower bound" in bound.find("title").text
    assert "lower bound" in texts(svg)


def test_one_slow_run_does_not_make_all_bars_small():
    row = bar_charts.StackedBar("one", {"a": 1.0}, raw_totals=(0.9, 1.0, 40.0))
    svg = bar_charts.stacked_bars([row], SEGMENTS, "t", "time", seconds_text, seconds_unit)
    bar = next(mark for mark in marks(svg) if mark.tag == "rect")
    assert float(bar.get("width")) > 400
    assert "40.0\u00a0s" in texts(svg)


def test_a_tree_collapses_chains_and_ends_in_every_snapshot_once():
    rows = [
        tree_charts.MapRow(str(n), tuple(f"{depth}:{n % 2 ** max(0, depth - 3)}" for depth in range(9)))
        for n in range(16)
    ]
    ordered = tree_charts.sort_by_prefix(rows)
    tree = tree_charts.collapse_tree(ordered)
    assert (tree.start, tree.end, tree.depth) == (0, 16, 4)
    leaves, waiting = [], [tree]
    while waiting:
        branch = waiting.pop()
        waiting += branch.children
        assert len(branch.children) != 1
        leaves += [] if branch.children else list(range(branch.start, branch.end))
    assert sorted(leaves) == list(range(16))


def test_a_hundred_and_forty_names_beside_a_tree_do_not_overlap():
    rows = [
        tree_charts.MapRow(
            f"snapshot {n}", tuple(f"{depth}:{n % 2 ** max(0, depth - 1)}" for depth in range(10)), str(n % 4)
        )
        for n in range(140)
    ]
    svg = tree_charts.prefix_tree(rows, [tree_charts.MapColumn(str(depth)) for depth in range(10)], "t")
    ys = sorted(float(e.get("y")) for e in parsed(svg).iter("text") if (e.text or "").startswith("snapshot "))
    assert len(ys) == 140
    assert all(b - a >= 12.9 for a, b in pairwise(ys))


def test_snapshots_that_are_equal_in_every_block_end_together():
    rows = [tree_charts.MapRow(name, ("a", "b")) for name in ("one", "two")]
    tree = tree_charts.collapse_tree(rows)
    assert (tree.end, tree.children) == (2, ())
    svg = tree_charts.prefix_tree(rows, [tree_charts.MapColumn("x"), tree_charts.MapColumn("y")], "t")
    assert {"one", "two"} <= set(texts(svg))


@given(st.floats(1e-9, 1e9), st.floats(1.5, 1e9))
def test_ticks_of_a_logarithmic_axis_are_few_and_inside(low, factor):
    found = log_ticks(low, low * factor)
    assert len(found) <= 20
    assert all(low <= value <= low * factor for value in found)


def test_a_bar_is_as_long_as_its_segments_together_and_the_scale_starts_at_zero():
    rects = [mark for mark in marks(bars()) if mark.tag == "rect"]
    one, other = sum(float(r.get("width")) for r in rects[:2]), sum(float(r.get("width")) for r in rects[2:])
    assert one / other == pytest.approx(2.0 / 1.25, rel=0.01)
    assert float(rects[0].get("x")) == float(rects[2].get("x"))


def test_a_segment_that_no_bar_has_is_left_out_of_the_legend():
    row = bar_charts.StackedBar("one", {"a": 1.0})
    svg = bar_charts.stacked_bars([row], SEGMENTS, "t", "time", seconds_text, seconds_unit)
    assert "first" in texts(svg)
    assert "second" not in texts(svg)


def test_the_axis_of_bars_names_its_unit():
    row = bar_charts.StackedBar("one", {"a": 250e6})
    svg = bar_charts.stacked_bars([row], SEGMENTS, "t", "size", seconds_text, bytes_unit)
    assert "size (MB)" in texts(svg)
    assert {"0", "100", "200"} <= set(texts(svg))


def test_bars_without_any_time_are_drawn():
    svg = bar_charts.stacked_bars(
        [bar_charts.StackedBar("one", {"a": 0.0})], SEGMENTS, "t", "time", seconds_text, seconds_unit
    )
    assert "0\u00a0s" in texts(svg)


def test_one_epoch_is_a_dot_without_a_line():
    svg = line_charts.line_panel("one", "", [line_charts.Line("a", ((1, 0.5),))], (1, 1), (0.0, 1.0))
    assert len(marks(svg)) == 1
    assert parsed(svg).find(".//polyline") is None


def test_a_panel_without_any_epoch_says_so():
    assert "no finished epoch" in texts(line_charts.line_panel("one", "", [], (1, 1), (0.0, 1.0)))


def test_a_broken_line_ends_in_a_cross():
    assert len(list(parsed(panel()).iter("path"))) == 1


def test_a_block_cell_is_as_tall_as_the_number_of_snapshots_that_share_it():
    svg = block_map()
    heights = {mark.find("title").text: float(mark.get("height")) for mark in marks(svg)}
    shared = {text: height for text, height in heights.items() if "stored once for" in text}
    assert sorted(text.split("stored once for ")[1] for text in shared) == ["2 snapshots", "3 snapshots"]
    assert max(heights.values()) == shared["one (1 kB): stored once for 3 snapshots"]
    assert {"3", "2"} <= set(texts(svg))


def test_the_cells_of_a_block_map_cover_every_snapshot_and_block_once():
    rows = [tree_charts.MapRow(str(n), tuple(f"{depth}:{n % 2**depth}" for depth in range(5))) for n in range(16)]
    svg = tree_charts.block_map(rows, [tree_charts.MapColumn(str(depth)) for depth in range(5)], "tree")
    height = min(float(mark.get("height")) for mark in marks(svg)) + 1.5
    assert len(marks(svg)) == 1 + 2 + 4 + 8 + 16
    assert sum(round((float(mark.get("height")) + 1.5) / height) for mark in marks(svg)) == 16 * 5


def test_names_beside_a_point_chart_do_not_overlap():
    series = [line_charts.Series(f"set {n}", ((1, 0.5 + n / 1000, "p"),)) for n in range(12)]
    svg = line_charts.point_chart(series, "t", "r", "accuracy", (0, 4), (0.0, 1.0))
    ys = sorted(float(e.get("y")) for e in parsed(svg).iter("text") if (e.text or "").startswith("set "))
    assert len(ys) == 12
    assert all(b - a >= 14.9 for a, b in pairwise(ys))


@given(st.floats(-1e6, 1e6), st.just(0.0) | st.floats(1e-3, 1e9))
def test_ticks_are_evenly_spaced_and_enclose_the_range(low, span):
    values = ticks(low, low + span)
    assert 2 <= len(values) <= 8
    slack = 1e-6 * max(1.0, span)
    assert values[0] <= low + slack
    assert values[-1] >= low + span - slack
    assert all(b - a == pytest.approx(values[1] - values[0], rel=1e-3) for a, b in pairwise(values))
    inside = ticks_within(low, low + span)
    assert set(inside) <= set(values)


@pytest.mark.parametrize("values", [[], [0.5], [0.5, 0.5], [0.1, 0.93]])
def test_a_shared_range_holds_all_its_values(values):
    low, high = line_charts.shared_range(values)
    assert low < high
    assert all(low <= value <= high and math.isfinite(value) for value in values)


def test_shortened_text_keeps_its_beginning_and_its_end():
    assert shorten("abcdefghij", 7) == "abc…hij"
    assert shorten("short", 7) == "short"
