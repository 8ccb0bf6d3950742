"""Dots on a logarithmic scale, and scatter plots."""

import pytest

from raysnap.humanize import seconds_text
from raysnap.report.charts.dots import DotRow, dot_rows, scatter
from tests.support.chart_examples import marks


def test_equal_ratios_are_equally_far_apart():
    rows = [DotRow("one", {name: (10.0**n, 10.0**n, 10.0**n) for n, name in enumerate("abc")})]
    xs = [float(mark.get("cx")) for mark in marks(dot_rows(rows, list("abc"), "t", "time", seconds_text))]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.02)


def test_larger_values_are_further_right_and_higher_up():
    low, high = marks(scatter([(0.1, 0.2, "low"), (0.9, 0.8, "high")], "t", "x", "y", (0.0, 1.0), (0.0, 1.0)))
    assert float(low.get("cx")) < float(high.get("cx"))
    assert float(low.get("cy")) > float(high.get("cy"))
