"""Equal values have equal bytes, and what is read back is what was written or is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysnap.canonical_json import canonical_json, parse_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(value=values)
def test_what_is_written_is_read_back_equal(value):
    assert parse_json(canonical_json(value)) == value


@given(value=st.dictionaries(st.text(), values, max_size=4))
def test_the_order_of_keys_changes_no_byte(value):
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


def test_the_bytes_are_utf_8_with_sorted_keys_and_no_blanks():
    assert canonical_json({"b": [1, 0.5, None], "a": "ä"}) == '{"a":"ä","b":[1,0.5,null]}'.encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", {"a": [float("-inf")]}])
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises(ValueError):  # noqa: PT011 - the message is that of json
        canonical_json(value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"a":1,"a":2}', "the key 'a' appears twice"),
        (b'[{"b":{"c":1,"c":1}}]', "the key 'c' appears twice"),
        (b"NaN", "NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b"1e999", "1e999 does not fit a float"),
        (b"[1,]", "Illegal trailing comma|Expecting value"),
        (b"\xff", "can't decode"),
        (b"", "Expecting value"),
    ],
)
def test_what_is_not_strict_json_is_refused(raw, message):
    with pytest.raises(ValueError, match=message):
        parse_json(raw)
