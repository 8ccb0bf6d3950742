"""Values of JSON rows, read leniently."""

import pytest

from raysnap.runs.json_fields import mapping, number, numbers, sequence, text, whole

NO_NUMBERS = [None, "1", [], {}, True, float("nan"), float("-inf"), 10**400]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: repr(value)[:20])
def test_what_is_no_finite_number_is_unknown(value):
    assert number(value) is None
    assert whole(value) is None


def test_numbers_become_floats_and_whole_numbers():
    assert (number(3), whole(3.9)) == (3.0, 3)
    assert isinstance(number(3), float)


def test_only_text_that_is_not_empty_is_text():
    assert [text(value) for value in ("a", "", 3, None)] == ["a", None, None, None]


def test_other_kinds_become_empty_objects_and_arrays():
    assert [mapping(value) for value in ({"a": 1}, [], None)] == [{"a": 1}, {}, {}]
    assert [sequence(value) for value in ([1], {}, "ab")] == [[1], [], []]


def test_only_finite_numbers_of_an_object_are_kept():
    assert numbers({"a": 1, "b": "x", "c": None, "d": 0.5}) == {"a": 1.0, "d": 0.5}
