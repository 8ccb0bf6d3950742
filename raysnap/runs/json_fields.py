"""Values of a run's JSON rows, read leniently: what is missing or of another kind is unknown, never an error."""

from __future__ import annotations

import math
from typing import Any


def number(value: Any) -> float | None:
    """The value where it is a finite number, else `None`."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        return float(value) if is_number and math.isfinite(value) else None
    except OverflowError:
        return None


def whole(value: Any) -> int | None:
    """The value as a whole number where it is a finite number, else `None`."""
    found = number(value)
    return int(found) if found is not None else None


def text(value: Any) -> str | None:
    """The value where it is text that is not empty, else `None`."""
    return value if isinstance(value, str) and value else None


def mapping(value: Any) -> dict[str, Any]:
    """The value where it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def sequence(value: Any) -> list[Any]:
    """The value where it is a JSON array, else an empty one."""
    return value if isinstance(value, list) else []


def numbers(value: Any) -> dict[str, float]:
    """The finite numbers of a JSON object by key."""
    found = {key: number(one) for key, one in mapping(value).items()}
    return {key: one for key, one in found.items() if one is not None}
