"""An entry of a sweep's space is exactly one grid, choice or distribution, with something to try."""

import pytest
from pydantic import ValidationError

from raysnap.config.space_entry import SpaceEntry


@pytest.mark.parametrize(
    ("entry", "kind", "options", "bounds"),
    [
        ({"grid": [1, 2]}, "grid", {0: 1, 1: 2}, None),
        ({"choice": {"warm": 1, "cold": None}}, "choice", {"warm": 1, "cold": None}, None),
        ({"uniform": [0, 1]}, "uniform", None, (0, 1)),
        ({"loguniform": [1e-4, 1]}, "loguniform", None, (1e-4, 1)),
        ({"randint": [1, 3]}, "randint", None, (1, 3)),
        (
            {"truncated_normal": {"mean": 1, "deviation": 1, "low": 0, "high": 3}},
            "truncated_normal", None, (0, 3),
        ),
    ],
)  # fmt: skip
def test_an_entry_has_options_or_bounds(entry, kind, options, bounds):
    found = SpaceEntry.model_validate(entry)
    assert (found.kind, found.options, found.bounds) == (kind, options, bounds)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (3, "expected one of grid, choice, .* with its values, found 3"),
        ({"gird": [1]}, r"unknown kind 'gird'; did you mean 'grid'\?"),
        ({}, "expected exactly one of grid, .*, found none"),
        ({"grid": [1], "choice": [2]}, "expected exactly one of grid, .*, found grid and choice"),
        ({"grid": []}, "`grid` is empty: expected at least one value"),
        ({"choice": {}}, "`choice` is empty: expected at least one value"),
        ({"uniform": [1, 1]}, r"`uniform`: expected \[low, high\] with low < high, found \[1\.0, 1\.0\]"),
        ({"loguniform": [0, 1]}, "`loguniform`: expected numbers above 0, found 0"),
        (
            {"truncated_normal": {"mean": 5, "deviation": 1, "low": 0, "high": 3}},
            "expected low < mean < high, found 0, 5, 3",
        ),
    ],
)
def test_a_wrong_entry_is_refused(entry, message):
    with pytest.raises(ValidationError, match=message):
        SpaceEntry.model_validate(entry)
