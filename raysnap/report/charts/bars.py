"""Horizontal stacked bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raysnap.report.charts.svg import WIDTH, label, picture, shorten, tag, text_width, ticks_within, tooltip

MAX_OUTLIER = 1.6  # how far the axis may extend beyond the longest bar to show single runs


@dataclass(frozen=True)
class Segment:
    """One part of every stacked bar: its key in the bars' values, its name, its CSS class."""

    key: str
    name: str
    css: str


@dataclass(frozen=True)
class StackedBar:
    """One bar.

    Attributes:
        values: of each segment, by key.
        raw_totals: drawn as dots under the bar.
        note: shown at its end.
        bound: a lower bound of the total, drawn as a line across.
    """

    name: str
    values: dict[str, float]
    raw_totals: tuple[float, ...] = ()
    note: str = ""
    bound: float | None = None


def stacked_bars(
    bars: Sequence[StackedBar],
    segments: Sequence[Segment],
    title: str,
    axis: str,
    value_text: Callable[[float], str],
    axis_unit: Callable[[float], tuple[str, float]],
    name_chars: int = 26,
) -> str:
    """Draw horizontal bars whose segments add up, with the total at the end of each.

    Args:
        bars: from top to bottom.
        segments: from left to right; those that no bar has are left out.
        title: what the chart shows, for screen readers.
        axis: label of the horizontal axis; the unit is added.
        value_text: formats a value with its unit.
        axis_unit: returns the unit for an axis up to a value, and the value of one unit.
        name_chars: characters of a bar's name that are shown.
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
    parts = [_legend(used, left, 14, dots="single runs" if has_dots else "", bound="lower bound" if has_bound else "")]
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
    bar: StackedBar,
    segments: Sequence[Segment],
    y: float,
    left: float,
    per_value: float,
    value_text: Callable[[float], str],
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
    edge, outliers = WIDTH - 8.0, list[str]()
    for index, total in enumerate(bar.raw_totals, start=1):
        hint = tooltip(f"{bar.name}, run {index} of {len(bar.raw_totals)}: {value_text(total)}")
        at = left + total * per_value
        if at <= edge:
            parts.append(tag("circle", hint, cx=at, cy=y + 32, r=3, class_="mark dot"))
        else:  # one slow run must not make all the bars small
            outliers.append(value_text(total))
            parts.append(tag("path", hint, d=f"M{edge - 6:g} {y + 28:g}l6 4l-6 4z", class_="mark dot"))
    if outliers:
        parts.append(label(edge - 10, y + 36, ", ".join(outliers), "tick", "end"))
    if bar.bound:
        at = left + bar.bound * per_value
        ratio = f"{_total(bar) / bar.bound:.2f}"
        hint = tooltip(f"{bar.name}: took {ratio} × the lower bound of {value_text(bar.bound)} for this work")
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
