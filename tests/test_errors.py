"""Errors survive the way between processes and are described in one line."""

import pickle

import pytest

from raysnap import errors
from raysnap.errors import BlockDamaged, DataError, RaysnapError, describe_failure

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RaysnapError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_survives_pickling(kind):
    error = kind("a message", "ab" * 32, ("id",)) if kind is BlockDamaged else kind("a message")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (kind, "a message", vars(error))


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_an_exit_code(kind):
    assert kind.exit_code in (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (DataError("data/pets: expected images,\n  found none"), "data/pets: expected images, found none"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (KeyError("a\nb"), "KeyError: 'a\\nb'"),
        (MemoryError(), "MemoryError:"),
    ],
)
def test_a_failure_is_described_in_one_line(error, text):
    assert describe_failure(error) == text
