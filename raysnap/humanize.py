"""Numbers and text as people read them: seconds, bytes, counts, shares and scores, each with its unit.

`None` and numbers that are not finite are written as an en dash. Number and unit are joined by a no-break space.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import TypeGuard

NOTHING = "–"
_SPACE = "\u00a0"
_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(h|min|m|s|)")
_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "": 1.0}
_COUNT_UNITS = ("", "k", "M", "G", "T", "P")


def is_known(value: float | None) -> TypeGuard[float]:
    """Return whether there is a finite number to show."""
    return value is not None and math.isfinite(value)


def seconds_text(value_s: float | None) -> str:
    """Return a duration such as `38 ms`, `2.14 s`, `21.4 s`, `3 min 12 s` or `2 h 05 min`."""
    if not is_known(value_s):
        return NOTHING
    if abs(value_s) < 0.9995:
        return f"{value_s * 1000:.{1 if 0 < abs(value_s) < 0.00095 else 0}f}{_SPACE}ms" if value_s else f"0{_SPACE}s"
    if abs(value_s) < 119.5:
        return f"{value_s:.{2 if abs(value_s) < 9.995 else 1}f}{_SPACE}s"
    if abs(value_s) < 3599.5:
        minutes, rest = divmod(round(value_s), 60)
        return f"{minutes}{_SPACE}min{_SPACE}{rest:02d}{_SPACE}s"
    hours, rest = divmod(round(value_s / 60), 60)
    return f"{hours}{_SPACE}h{_SPACE}{rest:02d}{_SPACE}min"


def read_duration(text: str) -> float:
    """Return the seconds of a duration such as `30s`, `1.5 min`, `1h30m` or, in seconds, `90`.

    Raises:
        ValueError: it is none.
    """
    parts = _DURATION_PART.findall(text)
    if "".join(number + unit for number, unit in parts) != re.sub(r"\s", "", text) or not parts:
        raise ValueError(f"expected a duration such as 30s, 5m or 1h30m, found {text!r}")
    if not parts[-1][1] and len(parts) > 1:
        raise ValueError(f"expected a unit after each number, found {text!r}")
    return sum(float(number) * _UNIT_S[unit[:1]] for number, unit in parts)


def seconds_unit(largest_s: float) -> tuple[str, float]:
    """Return the unit for the ticks of an axis up to `largest_s`, and the unit's length in seconds."""
    units = (("h", 3600.0), ("min", 60.0), ("s", 1.0))
    return next((unit for unit in units if largest_s >= 2 * unit[1]), ("ms", 0.001))


def bytes_unit(largest_bytes: float) -> tuple[str, float]:
    """Return the unit for the ticks of an axis up to `largest_bytes`, and the unit's size in bytes."""
    power = min(int(math.log10(max(largest_bytes, 1)) / 3), len(_BYTE_UNITS) - 1)
    return _BYTE_UNITS[power], 1000.0**power


def bytes_text(num_bytes: float | None) -> str:
    """Return a byte count in decimal units with three figures, such as `44.8 MB`."""
    return _scaled(num_bytes, _BYTE_UNITS)


def parse_bytes(text: str) -> int:
    """Return the bytes that a text such as `3GiB`, `500 MB`, `1.5G` or `1000000` says.

    Raises:
        ValueError: it is not a number of bytes.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?)\s*([kmgtp]?)(i?)b?\s*", text, re.IGNORECASE)
    if found is None:
        raise ValueError(f"expected a number of bytes such as 3GiB or 500MB, found {text!r}")
    number, prefix, binary = found.groups()
    power = " kmgtp".index(prefix.lower() or " ")
    return int(float(number) * (1024 if binary else 1000) ** power)


def flops_text(flops: float | None) -> str:
    """Return a number of floating-point operations with three figures, such as `1.82 TFLOP`."""
    return _scaled(flops, tuple(f"{unit}FLOP" for unit in _COUNT_UNITS))


def count_text(count: float | None) -> str:
    """Return a count with thousands separators, such as `12,800`."""
    return f"{count:,.0f}" if is_known(count) else NOTHING


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """Return a count with its noun, such as `1 trial` or `12 trials`."""
    return f"{count:,}{_SPACE}{noun if count == 1 else nouns or noun + 's'}"


def score_text(score: float | None) -> str:
    """Return a score or an accuracy with three decimals."""
    return f"{score:.3f}" if is_known(score) else NOTHING


def share_text(share: float | None) -> str:
    """Return a fraction in percent, such as `76 %`."""
    return f"{share * 100:.0f}{_SPACE}%" if is_known(share) else NOTHING


def ratio_text(ratio: float | None) -> str:
    """Return a factor, such as `4.2×`."""
    return f"{ratio:,.{1 if ratio < 99.95 else 0}f}×" if is_known(ratio) else NOTHING


def suggest(word: object, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the known word that is spelt most like this one, "" where none is close.

    Upper and lower case count as equal.
    """
    import difflib  # only a mistyped name needs it

    folded = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(str(word).casefold(), list(folded), n=1, cutoff=0.5)
    return f"; did you mean {folded[near[0]]!r}?" if near else ""


def given_first(names: Iterable[str], trial: str | None) -> list[str]:
    """Return a snapshot's names, those that somebody gave it before that of the trial that made it.

    >>> given_first(["001-resnet18", "pets"], "001-resnet18")
    ['pets', '001-resnet18']
    """
    return sorted(names, key=lambda name: trial is not None and name.startswith(trial))


def _scaled(value: float | None, units: tuple[str, ...]) -> str:
    if not is_known(value):
        return NOTHING
    power = 0
    while abs(value) >= 999.5 and power < len(units) - 1:
        value, power = value / 1000, power + 1
    decimals = 0 if power == 0 or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{decimals}f}{_SPACE}{units[power]}"


# What a terminal or browser obeys instead of showing it: controls, ends of lines, marks of direction, half characters.
_OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\ufffe\uffff]"
)


def shown(text: str, keep: str = "\n\t") -> str:
    r"""Return the text with every character that would act or hide, such as an escape, written out: `\x1b`, `\u202e`.

    Names from disk, and errors that quote them, can hold such characters. `keep` are those that stay.
    """
    return _OBEYED.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def shown_line(text: str) -> str:
    """Return the text as `shown` does, in one line."""
    return shown(text, keep="")
