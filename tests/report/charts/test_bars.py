"""Stacked bars."""

import pytest

from raysnap.humanize import bytes_unit, seconds_text, seconds_unit
from raysnap.report.charts import bars as bar_charts
from tests.support.chart_examples import SEGMENTS, bars, marks, texts


def test_a_lower_bound_is_drawn_at_its_value_on_the_axis():
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


def test_a_bars_length_is_the_sum_of_its_segments():
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
