"""Lines over epochs, and points over whole numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

from raysnap.report.charts.svg import (
    WIDTH,
    category,
    label,
    picture,
    shorten,
    tag,
    text_width,
    ticks,
    ticks_within,
    tooltip,
)

MAX_LABELLED_SERIES = 20

Place: TypeAlias = Callable[[float, float], tuple[float, float]]
"""From a datum's (x, y) to its place in the picture, in pixels."""


@dataclass(frozen=True)
class Line:
    """One line of a panel: (x, y) in order of x, its strength (0 to 1), whether its trial failed, its CSS class."""

    name: str
    points: tuple[tuple[float, float], ...]
    strength: float = 1.0
    is_broken: bool = False
    css: str = ""


@dataclass(frozen=True)
class Event:
    """An event in a panel: its epoch, its name, its CSS class; with `y`, a ring at that height."""

    x: float
    name: str
    css: str
    y: float | None = None


@dataclass(frozen=True)
class Series:
    """Points of one name: (x, y, tooltip)."""

    name: str
    points: tuple[tuple[float, float, str], ...]


def shared_range(values: Sequence[float]) -> tuple[float, float]:
    """Return a range between round numbers that contains all values, so that panels can share one scale."""
    if not values:
        return 0.0, 1.0
    marks = ticks(min(values), max(values))
    return marks[0], marks[-1]


def line_panel(
    title: str,
    note: str,
    lines: Sequence[Line],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    chance: float | None = None,
    events: Sequence[Event] = (),
) -> str:
    """Draw one of several panels: lines over epochs, a dot per epoch, a cross where a trial failed.

    Args:
        title: the panel's name.
        note: shown under the title.
        lines: drawn in order, so that the last lies on top.
        x_range: first and last epoch.
        y_range: lowest and highest value.
        chance: accuracy of guessing, drawn as a dashed line.
        events: drawn as vertical lines behind the lines, and rings on top.
    """
    width, height, left, top, bottom = 300, 190, 36, 40, 152
    right = width - 10
    x_span, y_span = (x_range[1] - x_range[0]) or 1, (y_range[1] - y_range[0]) or 1

    def place(x: float, y: float) -> tuple[float, float]:
        along = (x - x_range[0]) / x_span if x_range[1] > x_range[0] else 0.5
        return left + along * (right - left), bottom - (y - y_range[0]) / y_span * (bottom - top)

    parts = [label(0, 14, shorten(title, 40), "panel"), label(0, 29, note, "tick")]
    for value in ticks_within(*y_range):
        y = place(x_range[0], value)[1]
        parts.append(tag("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(label(left - 6, y + 4, f"{value:.4g}", "tick", "end"))
    for value in sorted({x_range[0], x_range[1]}):
        anchor = "middle" if x_range[0] == x_range[1] else "start" if value == x_range[0] else "end"
        parts.append(label(place(value, y_range[0])[0], bottom + 16, f"{value:g}", "tick", anchor))
    parts.append(label((left + right) / 2, bottom + 30, "epoch", "axis", "middle"))
    if chance is not None and y_range[0] <= chance <= y_range[1]:
        y = place(x_range[0], chance)[1]
        parts.append(tag("line", x1=left, x2=right, y1=y, y2=y, class_="chance"))
        parts.append(label(right, y - 4, "guessing", "tick", "end"))
    parts.extend(_event_line(event, place, top, bottom) for event in events)
    parts.extend(_line(line, place) for line in lines)
    parts.extend(_event_ring(event, event.y, place) for event in events if event.y is not None)
    if not any(line.points for line in lines):
        parts.append(label((left + right) / 2, (top + bottom) / 2, "no finished epoch", "tick", "middle"))
    return picture(width, height, f"{title}: {note}", *parts, css="chart panel-chart")


def _event_line(event: Event, place: Place, top: float, bottom: float) -> str:
    x = place(event.x, 0)[0]
    hint = tooltip(f"{event.name} (epoch {event.x:g})")
    return tag("line", hint, x1=x, x2=x, y1=top - 4, y2=bottom, class_=f"mark event {event.css}")


def _event_ring(event: Event, height: float, place: Place) -> str:
    x, y = place(event.x, height)
    return tag("circle", tooltip(f"{event.name}: {height:.4g}"), cx=x, cy=y, r=4.5, class_=f"mark ring {event.css}")


def _line(line: Line, place: Place) -> str:
    spots = [place(x, y) for x, y in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    parts = [tooltip(line.name)]
    if len(spots) > 1:
        parts.append(tag("polyline", points=path, class_="stroke"))
    for (x, y), (value_x, value_y) in zip(spots, line.points, strict=True):
        hint = tooltip(f"{line.name}, epoch {value_x:g}: {value_y:.4g}")
        parts.append(tag("circle", hint, cx=round(x, 1), cy=round(y, 1), r=1.8, class_="mark"))
    if line.is_broken and spots:
        x, y = spots[-1]
        parts.append(tag("path", d=f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8", class_="cross"))
    css = "series broken" if line.is_broken else f"series {line.css}".rstrip()
    return tag("g", *parts, class_=css, opacity=None if line.is_broken else 0.4 + 0.6 * line.strength)


def point_chart(
    series: Sequence[Series],
    title: str,
    x_axis: str,
    y_axis: str,
    x_range: tuple[int, int],
    y_range: tuple[float, float],
    first_x_note: str = "",
) -> str:
    """Draw points over whole numbers, with a line through each series' means and its name at the right."""
    left, top, bottom = 52, 34, 340
    named = series if len(series) <= MAX_LABELLED_SERIES else []
    right = WIDTH - (40 + min(230, max((text_width(points.name) for points in named), default=0)) if named else 20)
    x_span, y_span = max(1, x_range[1] - x_range[0]), (y_range[1] - y_range[0]) or 1

    def place(x: float, y: float) -> tuple[float, float]:
        along = left + 24 + (x - x_range[0]) / x_span * (right - left - 48)
        return along, bottom - (y - y_range[0]) / y_span * (bottom - top)

    parts = [label(0, 16, y_axis, "axis")]
    for value in ticks_within(*y_range, num_ticks=6):
        y = place(0, value)[1]
        parts.append(tag("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(label(left - 8, y + 4, f"{value:.4g}", "tick", "end"))
    step = math.ceil((x_span + 1) / 26)
    for value in range(x_range[0], x_range[1] + 1, step):
        parts.append(label(place(value, y_range[0])[0], bottom + 18, str(value), "tick", "middle"))
    if first_x_note:
        parts.append(label(place(x_range[0], 0)[0], bottom + 33, first_x_note, "tick", "middle"))
    parts.append(label((left + right) / 2, bottom + 42, x_axis, "axis", "middle"))
    label_ys = _space_out([place(*_end_of(points))[1] for points in named], top, bottom, gap=15)
    dodge = min(5.0, 0.6 * (right - left - 48) / x_span / max(1, len(series)))
    for index, points in enumerate(series):
        shift = (index - (len(series) - 1) / 2) * dodge
        parts.append(_points(points, category(index, len(series)), place, shift))
        if named:
            x, y = place(*_end_of(points))
            parts.append(_end_name(points, category(index, len(series)), (x + shift, y), right, label_ys[index]))
    return picture(WIDTH, bottom + 50, title, *parts)


def _points(series: Series, css: str, place: Place, shift: float) -> str:
    """Draw a series' points, shifted sideways so that equal points of several series don't overlap."""
    parts = [tooltip(series.name)]
    means = _means(series)
    if len(means) > 1:
        spots = [place(x, y) for x, y in means]
        path = " ".join(f"{x + shift:.1f},{y:.1f}" for x, y in spots)
        parts.append(tag("polyline", points=path, class_="stroke"))
    for x, y, hint in series.points:
        spot_x, spot_y = place(x, y)
        parts.append(tag("circle", tooltip(hint), cx=round(spot_x + shift, 1), cy=round(spot_y, 1), r=4, class_="mark"))
    return tag("g", *parts, class_=f"series points {css}")


def _end_name(series: Series, css: str, end: tuple[float, float], right: float, y: float) -> str:
    """Draw a series' name beside the chart, with a thin line from its last point to it."""
    leader = f"{end[0] + 7:.1f},{end[1]:.1f} {right + 2:.1f},{y:.1f} {right + 12:.1f},{y:.1f}"
    return tag(
        "g",
        tag("polyline", points=leader, class_="leader"),
        label(right + 17, y + 4, shorten(series.name, 34), "name"),
        class_=css,
    )


def _means(series: Series) -> list[tuple[float, float]]:
    """Return the mean y at each x, in order of x."""
    by_x = groupby(sorted((x, y) for x, y, _ in series.points), key=lambda point: point[0])
    groups = [(x, [y for _, y in group]) for x, group in by_x]
    return [(x, math.fsum(ys) / len(ys)) for x, ys in groups]


def _end_of(series: Series) -> tuple[float, float]:
    return _means(series)[-1]


def _space_out(wanted: Sequence[float], low: float, high: float, gap: float) -> list[float]:
    """Return positions near the wanted ones, in the same order, at least `gap` apart if there is room."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    placed = [0.0] * len(wanted)
    floor = low
    for index in order:
        placed[index] = max(wanted[index], floor)
        floor = placed[index] + gap
    ceiling = high
    for index in reversed(order):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed
