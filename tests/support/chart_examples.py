"""One example of every chart of a report, and how tests look into them."""

from xml.etree import ElementTree

from raysnap.humanize import seconds_text, seconds_unit
from raysnap.report.charts import bars as bar_charts
from raysnap.report.charts import dots as charts
from raysnap.report.charts import lines as line_charts
from raysnap.report.charts import sweeps as sweep_charts
from raysnap.report.charts import trees as tree_charts

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
    traces = [
        sweep_charts.Trace((place(name), along(1e-3)), name, 0.3),
        sweep_charts.Trace((place("b"), None), name, 1.0, is_best=True),
    ]
    return sweep_charts.parallel_coordinates([words, numbers], traces, name)


def confusion(name: str = "one") -> str:
    return sweep_charts.confusion_matrix([name, "b"], {(0, 0): 3, (0, 1): 1, (1, 1): 2}, [4, 2], name)


CHARTS = [
    bars, panel, points, block_map, prefix_tree, dot_rows, scatter, boxes, trend, threads, confusion,
]  # fmt: skip
