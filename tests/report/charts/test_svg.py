"""Pieces of SVG: ticks and shortened text."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysnap.report.charts.svg import log_ticks, shorten, ticks, ticks_within


@given(st.floats(1e-9, 1e9), st.floats(1.5, 1e9))
def test_logarithmic_ticks_are_few_and_inside_the_range(low, factor):
    found = log_ticks(low, low * factor)
    assert len(found) <= 20
    assert all(low <= value <= low * factor for value in found)


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


def test_shortened_text_keeps_its_beginning_and_its_end():
    assert shorten("abcdefghij", 7) == "abc…hij"
    assert shorten("short", 7) == "short"


@pytest.mark.parametrize("score", [0.0, 0.25, 1.0])
def test_one_score_has_an_axis_of_scores(score):
    values = ticks(score, score)
    assert 0 <= values[0] <= score <= values[-1] <= 1 and len(values) > 1
