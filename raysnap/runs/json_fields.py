"""Read files of JSON rows, and their values, leniently: what is missing or of another kind is unknown, no error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects in a file of JSON lines; truncated lines and a missing file count as nothing."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def number(value: object) -> float | None:
    """Return the value as a float; None if it is no finite number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def whole(value: object) -> int | None:
    """Return the value, rounded towards zero; None if it is no finite number."""
    found = number(value)
    return int(found) if found is not None else None


def text(value: object) -> str | None:
    """Return the value; None if it is no text, or empty text."""
    return value if isinstance(value, str) and value else None


def mapping(value: Any) -> dict[str, Any]:
    """Return the value; an empty dict if it is no JSON object."""
    return value if isinstance(value, dict) else {}


def sequence(value: Any) -> list[Any]:
    """Return the value; an empty list if it is no JSON array."""
    return value if isinstance(value, list) else []


def numbers(value: Any) -> dict[str, float]:
    """Return the finite numbers of a JSON object by key."""
    found = {key: number(child) for key, child in mapping(value).items()}
    return {key: child for key, child in found.items() if child is not None}
