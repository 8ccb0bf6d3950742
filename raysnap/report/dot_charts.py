"""Charts of a report: pure functions from data to inline SVG, with axes, units, labels and tooltips.

Every datum is one element of class `mark` that carries its own `<title>`. Colours are CSS classes, which
templates/report.css gives their light, dark and print values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from raysnap.report.svg import label, log_ticks, picture, shorten, tag, text_width, ticks, ticks_within, tooltip

WIDTH = 960
MAX_LABELLED_SERIES = 20
MAX_OUTLIER = 1.6  # how far beyond the longest bar the axis reaches for the sake of single runs
NUM_CATEGORIES = 8


@dataclass(frozen=True)
class Segment:
    """One part of every stacked bar: its key in the bars' values, its name, its CSS class."""

    key: str
    name: str
    css: str


@dataclass(frozen=True)
class StackedBar:
    """One bar: the value of each segment, the raw totals drawn as dots under it, a note at its end, a lower bound."""

    name: str
    values: dict[str, float]
    raw_totals: tuple[float, ...] = ()
    note: str = ""
    bound: float | None = None


@dataclass(frozen=True)
class Line:
    """One line of a panel: (x, y) in order of x, its strength (0 to 1), whether it came to grief, its CSS class."""

    name: str
    points: tuple[tuple[float, float], ...]
    strength: float = 1.0
    is_broken: bool = False
    css: str = ""


@dataclass(frozen=True)
class Event:
    """A moment of a panel: an epoch, what happened in it, its CSS class; with `y`, a ring at that height."""

    x: float
    name: str
    css: str
    y: float | None = None


@dataclass(frozen=True)
class Series:
    """Points of one name: (x, y, tooltip)."""

    name: str
    points: tuple[tuple[float, float, str], ...]


def stacked_bars(
    bars: Sequence[StackedBar],
    segments: Sequence[Segment],
    title: str,
    axis: str,
    value_text: Callable[[float], str],
    axis_unit: Callable[[float], tuple[str, float]],
    name_chars: int = 26,
) -> str:
    """Horizontal bars whose segments add up: the total at the end, the bound as a line across, raw totals below.

    Args:
        bars: from top to bottom.
        segments: from left to right; those that no bar has are left out.
        title: what the chart shows, for those who can't see it.
        axis: what the horizontal axis shows; its unit is added.
        value_text: a value as text with its unit.
        axis_unit: the unit for an axis up to a value, and what one of it is worth.
        name_chars: how much of a bar's name is shown.
    """
    used = [segment for segment in segments if any(bar.values.get(segment.key, 0) > 0 for bar in bars)]
    top = max((max(_total(bar), bar.bound or 0.0) for bar in bars), default=0.0)
    top = min(max([top, *(raw for bar in bars for raw in bar.raw_totals)]), MAX_OUTLIER * top)
    unit, unit_worth = axis_unit(top)
    left = max((text_width(shorten(bar.name, name_chars), 13) for bar in bars), default=0) + 16
    right = max((text_width(_end_label(bar, value_text), 13) for bar in bars), default=0) + 24
    per_value = (WIDTH - left - right) / (top or 1.0)
    has_dots = any(bar.raw_totals for bar in bars)
    pitch = 50 if has_dots else 40
    bottom = 40 + pitch * len(bars)
    has_bound = any(bar.bound for bar in bars)
    parts = [_legend(used, left, 14, dots="each run" if has_dots else "", bound="bound" if has_bound else "")]
    for value in ticks_within(0, (top or 1.0) / unit_worth, 6):
        x = left + value * unit_worth * per_value
        parts.append(tag("line", x1=x, x2=x, y1=34, y2=bottom, class_="grid"))
        parts.append(label(x, bottom + 17, f"{value:g}", "tick", "middle"))
    parts.append(label(left, bottom + 38, f"{axis} ({unit})", "axis"))
    for row, bar in enumerate(bars):
        y = 42 + row * pitch
        parts.append(label(left - 10, y + 17, shorten(bar.name, name_chars), "name", "end"))
        parts.append(_bar(bar, used, y, left, per_value, value_text))
    return picture(WIDTH, bottom + 46, title, *parts)


def _bar(
    bar: StackedBar, segments: Sequence[Segment], y: float, left: float, per_value: float, value_text: Callable
) -> str:
    parts = []
    x = left
    for segment in segments:
        value = bar.values.get(segment.key, 0.0)
        width = value * per_value
        hint = tooltip(f"{bar.name}, {segment.name}: {value_text(value)} of {value_text(_total(bar))}")
        parts.append(tag("rect", hint, x=x, y=y, width=width, height=24, class_=f"mark {segment.css}"))
        if width > text_width(segment.name, 11) + 12:
            parts.append(label(x + 6, y + 16, segment.name, f"inside on-{segment.css}"))
        x += width
    edge, beyond = WIDTH - 8.0, []
    for index, total in enumerate(bar.raw_totals, start=1):
        hint = tooltip(f"{bar.name}, run {index} of {len(bar.raw_totals)}: {value_text(total)}")
        at = left + total * per_value
        if at <= edge:
            parts.append(tag("circle", hint, cx=at, cy=y + 32, r=3, class_="mark dot"))
        else:  # one slow run must not make all the bars small
            beyond.append(value_text(total))
            parts.append(tag("path", hint, d=f"M{edge - 6:g} {y + 28:g}l6 4l-6 4z", class_="mark dot"))
    if beyond:
        parts.append(label(edge - 10, y + 36, ", ".join(beyond), "tick", "end"))
    if bar.bound:
        at = left + bar.bound * per_value
        hint = tooltip(
            f"{bar.name}: at least {value_text(bar.bound)} for this work, {_total(bar) / bar.bound:.2f} × that taken"
        )
        parts.append(tag("line", hint, x1=at, x2=at, y1=y - 4, y2=y + 28, class_="mark bound"))
    parts.append(label(x + 8, y + 17, value_text(_total(bar)), "value"))
    if bar.note:
        parts.append(label(x + 18 + text_width(value_text(_total(bar)), 14.5), y + 17, bar.note, "legend"))
    return tag("g", *parts)


def _end_label(bar: StackedBar, value_text: Callable[[float], str]) -> str:
    return f"{value_text(_total(bar))}  {bar.note}"


def _total(bar: StackedBar) -> float:
    return math.fsum(bar.values.values())


def _legend(segments: Sequence[Segment], x: float, y: float, dots: str = "", bound: str = "") -> str:
    parts = []
    for segment in segments:
        parts.append(tag("rect", x=x, y=y - 10, width=11, height=11, class_=segment.css))
        parts.append(label(x + 17, y, segment.name, "legend"))
        x += 36 + text_width(segment.name)
    if dots:
        parts.append(tag("circle", cx=x + 5, cy=y - 4, r=3, class_="dot"))
        parts.append(label(x + 15, y, dots, "legend"))
        x += 34 + text_width(dots)
    if bound:
        parts.append(tag("line", x1=x + 5, x2=x + 5, y1=y - 11, y2=y + 3, class_="bound"))
        parts.append(label(x + 13, y, bound, "legend"))
    return tag("g", *parts)


@dataclass(frozen=True)
class DotRow:
    """One row of dots: (middle, lowest, highest) by the name of its series."""

    name: str
    values: dict[str, tuple[float, float, float]]


def dot_rows(
    rows: Sequence[DotRow], series: Sequence[str], title: str, axis: str, value_text: Callable[[float], str]
) -> str:
    """A row per question and a dot per series on a logarithmic scale, with a line from its lowest to its highest."""
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
    """A dot per (x, y, tooltip)."""
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


def shared_range(values: Sequence[float]) -> tuple[float, float]:
    """A round range that holds all the values, so that panels side by side share one scale."""
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
    """One small multiple: lines over epochs on a shared scale, a dot per epoch, a cross where a line came to grief.

    Args:
        title: the panel's name.
        note: what to know of it, under its name.
        lines: drawn in order, so that the last lies on top.
        x_range: first and last epoch.
        y_range: lowest and highest value.
        chance: the value that guessing reaches, drawn as a dashed line.
        events: drawn as upright lines behind the lines, and rings on top.
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
        parts.append(label(right, y - 4, "chance", "tick", "end"))
    parts.extend(_event_line(event, place, top, bottom) for event in events)
    parts.extend(_line(line, place) for line in lines)
    parts.extend(_event_ring(event, place) for event in events if event.y is not None)
    if not any(line.points for line in lines):
        parts.append(label((left + right) / 2, (top + bottom) / 2, "no finished epoch", "tick", "middle"))
    return picture(width, height, f"{title}: {note}", *parts, css="chart panel-chart")


def _event_line(event: Event, place: Callable[[float, float], tuple[float, float]], top: float, bottom: float) -> str:
    x = place(event.x, 0)[0]
    hint = tooltip(f"{event.name} (epoch {event.x:g})")
    return tag("line", hint, x1=x, x2=x, y1=top - 4, y2=bottom, class_=f"mark event {event.css}")


def _event_ring(event: Event, place: Callable[[float, float], tuple[float, float]]) -> str:
    x, y = place(event.x, event.y)
    return tag("circle", tooltip(f"{event.name}: {event.y:.4g}"), cx=x, cy=y, r=4.5, class_=f"mark ring {event.css}")


def _line(line: Line, place: Callable[[float, float], tuple[float, float]]) -> str:
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
    """Points over whole numbers, a line through each series' means, its name beside its right end."""
    left, top, bottom = 52, 34, 340
    named = series if len(series) <= MAX_LABELLED_SERIES else []
    right = WIDTH - (40 + min(230, max((text_width(one.name) for one in named), default=0)) if named else 20)
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
    label_ys = _spread([place(*_end_of(one))[1] for one in named], top, bottom, gap=15)
    dodge = min(5.0, 0.6 * (right - left - 48) / x_span / max(1, len(series)))
    for index, one in enumerate(series):
        shift = (index - (len(series) - 1) / 2) * dodge
        parts.append(_points(one, category(index, len(series)), place, shift))
        if named:
            x, y = place(*_end_of(one))
            parts.append(_end_name(one, category(index, len(series)), (x + shift, y), right, label_ys[index]))
    return picture(WIDTH, bottom + 50, title, *parts)


def _points(series: Series, css: str, place: Callable[[float, float], tuple[float, float]], shift: float) -> str:
    """The series' points, moved by `shift` so that equal ones of several series stand beside each other."""
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
    """The series' name beside the chart, with a thin line from its last point to it."""
    leader = f"{end[0] + 7:.1f},{end[1]:.1f} {right + 2:.1f},{y:.1f} {right + 12:.1f},{y:.1f}"
    return tag(
        "g",
        tag("polyline", points=leader, class_="leader"),
        label(right + 17, y + 4, shorten(series.name, 34), "name"),
        class_=css,
    )


def _means(series: Series) -> list[tuple[float, float]]:
    """The mean y at each x, in order of x."""
    by_x = groupby(sorted((x, y) for x, y, _ in series.points), key=lambda point: point[0])
    groups = [(x, [y for _, y in group]) for x, group in by_x]
    return [(x, math.fsum(ys) / len(ys)) for x, ys in groups]


def _end_of(series: Series) -> tuple[float, float]:
    return _means(series)[-1]


def category(index: int, num_series: int) -> str:
    """The CSS class of one of so many series; too many share one colour."""
    return f"cat-{index}" if num_series <= NUM_CATEGORIES else "cat-many"


def _spread(wanted: Sequence[float], low: float, high: float, gap: float) -> list[float]:
    """Positions near the wanted ones that keep their order and stand at least `gap` apart."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    spread = [0.0] * len(wanted)
    floor = low
    for index in order:
        spread[index] = max(wanted[index], floor)
        floor = spread[index] + gap
    ceiling = high
    for index in reversed(order):
        spread[index] = min(spread[index], ceiling)
        ceiling = spread[index] - gap
    return spread
