"""Lines over epochs, and points over whole numbers."""

import math
from itertools import pairwise

import pytest

from raysnap.report.charts import lines as line_charts
from tests.support.chart_examples import marks, panel, parsed, texts


def test_one_epoch_is_a_dot_without_a_line():
    svg = line_charts.line_panel("one", "", [line_charts.Line("a", ((1, 0.5),))], (1, 1), (0.0, 1.0))
    assert len(marks(svg)) == 1
    assert parsed(svg).find(".//polyline") is None


def test_a_panel_without_any_epoch_says_so():
    assert "no finished epoch" in texts(line_charts.line_panel("one", "", [], (1, 1), (0.0, 1.0)))


def test_the_line_of_a_failed_trial_ends_in_a_cross():
    assert len(list(parsed(panel()).iter("path"))) == 1


def test_names_beside_a_point_chart_do_not_overlap():
    series = [line_charts.Series(f"set {n}", ((1, 0.5 + n / 1000, "p"),)) for n in range(12)]
    svg = line_charts.point_chart(series, "t", "r", "accuracy", (0, 4), (0.0, 1.0))
    ys = sorted(float(e.get("y")) for e in parsed(svg).iter("text") if (e.text or "").startswith("set "))
    assert len(ys) == 12
    assert all(b - a >= 14.9 for a, b in pairwise(ys))


@pytest.mark.parametrize("values", [[], [0.5], [0.5, 0.5], [0.1, 0.93]])
def test_a_shared_range_holds_all_its_values(values):
    low, high = line_charts.shared_range(values)
    assert low < high
    assert all(low <= value <= high and math.isfinite(value) for value in values)
