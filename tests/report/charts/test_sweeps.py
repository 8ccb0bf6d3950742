"""Charts of sweeps."""

from raysnap.report.charts.svg import text_width
from tests.support.chart_examples import parsed, threads


def test_the_name_of_the_first_axis_is_within_the_picture():
    (head, *_) = [one for one in parsed(threads("a_name_of_20_letters")).iter("text") if one.get("class") == "head"]
    assert float(head.get("x")) >= text_width(head.text, 11.5) / 2
