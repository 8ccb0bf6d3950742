"""Dots on a logarithmic scale, and scatter plots."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raysnap.report.charts.svg import (
    WIDTH,
    category,
    label,
    log_ticks,
    picture,
    shorten,
    tag,
    text_width,
    ticks_within,
    tooltip,
)


@dataclass(frozen=True)
class DotRow:
    """One row of dots: (middle, lowest, highest) by the name of its series."""

    name: str
    values: dict[str, tuple[float, float, float]]


def dot_rows(
    rows: Sequence[DotRow], series: Sequence[str], title: str, axis: str, value_text: Callable[[float], str]
) -> str:
    """Draw a row of dots per question on a logarithmic scale: a dot per series, a line over its range."""
    pitch, top = 22.0, 44.0
    left = min(400.0, max((text_width(row.name, 12) for row in rows), default=0) + 14)
    right, bottom = WIDTH - 30.0, top + pitch * len(rows)
    found = [value for row in rows for spread in row.values.values() for value in spread if value > 0] or [1.0]
    low, high = math.log10(min(found)) - 0.05, math.log10(max(found)) + 0.05

    def place(value: float) -> float:
        return left + (math.log10(max(value, 10**low)) - low) / (high - low) * (right - left)

    parts = [_series_key(series, left, 14)]
    for value in log_ticks(10**low, 10**high):
        parts.append(tag("line", x1=place(value), x2=place(value), y1=top - 8, y2=bottom, class_="grid"))
        parts.append(label(place(value), bottom + 17, value_text(value), "tick", "middle"))
    parts.append(label(left, bottom + 36, axis, "axis"))
    for index, row in enumerate(rows):
        y = top + (index + 0.5) * pitch
        parts.append(label(left - 10, y + 4, shorten(row.name, 58), "row", "end"))
        for name, (middle, lowest, highest) in row.values.items():
            css = category(series.index(name), len(series))
            parts.append(tag("line", x1=place(lowest), x2=place(highest), y1=y, y2=y, class_=f"whisker {css}"))
            hint = tooltip(f"{row.name}, {name}: {value_text(middle)} ({value_text(lowest)} to {value_text(highest)})")
            parts.append(tag("circle", hint, cx=place(middle), cy=y, r=5, class_=f"mark {css}"))
    return picture(WIDTH, bottom + 44, title, *parts)


def _series_key(series: Sequence[str], x: float, y: float) -> str:
    parts = []
    for index, name in enumerate(series):
        parts.append(tag("circle", cx=x + 5, cy=y - 4, r=5, class_=category(index, len(series))))
        parts.append(label(x + 15, y, shorten(name, 30), "legend"))
        x += 34 + text_width(shorten(name, 30))
    return tag("g", *parts)


def scatter(
    points: Sequence[tuple[float, float, str]],
    title: str,
    x_axis: str,
    y_axis: str,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> str:
    """Draw a scatter plot with a dot per (x, y, tooltip)."""
    width, left, top, bottom = 560.0, 52.0, 30.0, 330.0
    right = width - 16
    parts = [label(0, 14, y_axis, "axis"), label((left + right) / 2, bottom + 40, x_axis, "axis", "middle")]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_range[0]) / ((x_range[1] - x_range[0]) or 1)
        up = (y - y_range[0]) / ((y_range[1] - y_range[0]) or 1)
        return left + across * (right - left), bottom - up * (bottom - top)

    for value in ticks_within(*y_range):
        y = place(x_range[0], value)[1]
        parts.append(tag("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(label(left - 8, y + 4, f"{value:.4g}", "tick", "end"))
    for value in ticks_within(*x_range):
        x = place(value, y_range[0])[0]
        parts.append(tag("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid"))
        parts.append(label(x, bottom + 18, f"{value:.4g}", "tick", "middle"))
    for x, y, hint in points:
        spot_x, spot_y = place(x, y)
        parts.append(tag("circle", tooltip(hint), cx=spot_x, cy=spot_y, r=5, class_="mark cat-0"))
    return picture(width, bottom + 48, title, *parts, css="chart small-chart")
