"""Laws of every chart: well-formed, a mark with a tooltip per datum, hostile names stay text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.chart_examples import (
    CHARTS,
    HOSTILE,
    bars,
    block_map,
    boxes,
    confusion,
    dot_rows,
    marks,
    panel,
    parsed,
    points,
    prefix_tree,
    scatter,
    threads,
    trend,
)


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


@pytest.mark.parametrize("chart", CHARTS)
def test_hostile_names_stay_text_in_well_formed_xml(chart):
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
