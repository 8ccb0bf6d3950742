"""Charts of a sweep: the effect of each parameter, trials across all parameters, a confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from raysnap.report.charts.svg import (
    WIDTH,
    escape,
    label,
    log_ticks,
    picture,
    shorten,
    tag,
    text_width,
    ticks_within,
    tooltip,
)

PANEL_WIDTH, PANEL_HEIGHT = 300.0, 230.0
PANEL_LEFT, PANEL_TOP, PANEL_BOTTOM = 40.0, 30.0, 180.0


@dataclass(frozen=True)
class Dot:
    """A trial in a panel: its x if the parameter is a number, its y, its tooltip, whether it finished."""

    x: float | None
    y: float
    hint: str
    is_done: bool = True
    is_best: bool = False


@dataclass(frozen=True)
class Axis:
    """One axis of parallel coordinates: its name, and (place from 0 to 1, text) of its ticks."""

    name: str
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Trace:
    """A trial across the axes: its place from 0 to 1 on each, None if it has no value; how good it is, 0 to 1."""

    places: tuple[float | None, ...]
    hint: str
    strength: float
    is_best: bool = False


def effect_boxes(name: str, groups: Mapping[str, Sequence[Dot]], y_name: str, y_range: tuple[float, float]) -> str:
    """Draw a column per value: a dot per trial, a box over the quartiles, a line at the median."""
    parts, up = _panel_frame(name, y_name, y_range)
    pitch = (PANEL_WIDTH - PANEL_LEFT - 10) / max(1, len(groups))
    for index, (value, dots) in enumerate(groups.items()):
        middle = PANEL_LEFT + (index + 0.5) * pitch
        half = min(26.0, pitch * 0.3)
        ys = sorted(dot.y for dot in dots if dot.is_done)
        if len(ys) > 1:
            low, _, high = quantiles(ys, n=4, method="inclusive")
            hint = tooltip(f"{name} = {value}: quartiles {low:.4g} and {high:.4g} of {len(ys)} trials")
            size = {"x": middle - half, "y": up(high), "width": 2 * half, "height": max(1.0, up(low) - up(high))}
            parts.append(tag("rect", hint, **size, rx=2, class_="mark box"))
        if ys:
            y, hint = up(median(ys)), tooltip(f"{name} = {value}: median {median(ys):.4g} of {len(ys)} trials")
            parts.append(tag("line", hint, x1=middle - half, x2=middle + half, y1=y, y2=y, class_="mark median"))
        for number, dot in enumerate(dots):
            shift = ((number * 7) % 11 / 10 - 0.5) * half * 1.3  # side by side, since many may be equal
            parts.append(_dot(dot, middle + shift, up(dot.y)))
        parts.append(label(middle, PANEL_BOTTOM + 17, shorten(value, max(4, int(pitch / 6.5))), "tick", "middle"))
    return picture(PANEL_WIDTH, PANEL_HEIGHT - 14, f"{y_name} by {name}", *parts, css="chart panel-chart")


def effect_points(name: str, dots: Sequence[Dot], y_name: str, y_range: tuple[float, float], *, is_log: bool) -> str:
    """Draw a dot per trial over a numeric parameter."""
    parts, up = _panel_frame(name, y_name, y_range)
    xs = [dot.x for dot in dots if dot.x is not None]
    low, high = min(xs), max(xs)
    along, marks = _scale(low, high, is_log)
    for value in marks:
        x = PANEL_LEFT + 8 + along(value) * (PANEL_WIDTH - PANEL_LEFT - 22)
        parts.append(tag("line", x1=x, x2=x, y1=PANEL_BOTTOM, y2=PANEL_BOTTOM + 4, class_="grid"))
        parts.append(label(x, PANEL_BOTTOM + 17, f"{value:.4g}", "tick", "middle"))
    for dot in dots:
        if dot.x is not None:
            x = PANEL_LEFT + 8 + along(dot.x) * (PANEL_WIDTH - PANEL_LEFT - 22)
            parts.append(_dot(dot, x, up(dot.y)))
    return picture(PANEL_WIDTH, PANEL_HEIGHT - 14, f"{y_name} by {name}", *parts, css="chart panel-chart")


def _panel_frame(name: str, y_name: str, y_range: tuple[float, float]) -> tuple[list[str], Callable[[float], float]]:
    span = (y_range[1] - y_range[0]) or 1

    def up(y: float) -> float:
        return PANEL_BOTTOM - (y - y_range[0]) / span * (PANEL_BOTTOM - PANEL_TOP)

    parts = [label(0, 14, shorten(name, 30), "panel"), label(PANEL_WIDTH, 14, y_name, "axis", "end")]
    for value in ticks_within(*y_range):
        parts.append(tag("line", x1=PANEL_LEFT, x2=PANEL_WIDTH - 6, y1=up(value), y2=up(value), class_="grid"))
        parts.append(label(PANEL_LEFT - 6, up(value) + 4, f"{value:.4g}", "tick", "end"))
    return parts, up


def _dot(dot: Dot, x: float, y: float) -> str:
    css = "mark spot" + ("" if dot.is_done else " hollow") + (" best" if dot.is_best else "")
    return tag("circle", tooltip(dot.hint), cx=x, cy=y, r=5 if dot.is_best else 3.6, class_=css)


def _scale(low: float, high: float, is_log: bool) -> tuple[Callable[[float], float], list[float]]:
    """Return a function from a value to its place between 0 and 1, and the values of the ticks."""
    if is_log:
        span = (math.log10(high) - math.log10(low)) or 1
        marks = log_ticks(low, high, max_ticks=5)
        return lambda value: (math.log10(value) - math.log10(low)) / span, marks if len(marks) > 1 else [low, high]
    return lambda value: (value - low) / ((high - low) or 1), ticks_within(low, high, 4) or [low]


def numeric_axis(name: str, values: Sequence[float], *, is_log: bool) -> tuple[Axis, Callable[[float], float]]:
    """Return an axis over numbers, and a function from a number to its place on it."""
    along, marks = _scale(min(values), max(values), is_log)
    return Axis(name, tuple((along(value), f"{value:.4g}") for value in marks)), along


def value_axis(name: str, values: Sequence[str]) -> tuple[Axis, Callable[[str], float]]:
    """Return an axis over a few evenly spaced values, and a function from a value to its place on it."""
    places = {value: (index + 0.5) / len(values) for index, value in enumerate(values)}
    return Axis(name, tuple((place, value) for value, place in places.items())), places.__getitem__


def parallel_coordinates(axes: Sequence[Axis], traces: Sequence[Trace], title: str) -> str:
    """Draw a line per trial across all axes, darker for better trials, the best one in colour."""
    first = max((text_width(shorten(name, 26), 11.5) for _, name in axes[0].ticks), default=0) if axes else 0
    head = text_width(axes[0].name, 13) / 2 if axes else 0  # bold is wider
    left, right, top, bottom = max(40.0, first + 14, head), WIDTH - 90.0, 40.0, 330.0
    pitch = (right - left) / max(1, len(axes) - 1)
    xs = [left + index * pitch for index in range(len(axes))]
    parts = []
    for trace in sorted(traces, key=lambda trace: (trace.is_best, trace.strength)):
        spots = [
            f"{x:.1f},{bottom - place * (bottom - top):.1f}"
            for x, place in zip(xs, trace.places, strict=True)
            if place is not None
        ]
        css = "mark trace best" if trace.is_best else "mark trace"
        opacity = None if trace.is_best else round(0.15 + 0.75 * trace.strength, 3)
        parts.append(tag("polyline", tooltip(trace.hint), points=" ".join(spots), class_=css, opacity=opacity))
    for index, (x, axis) in enumerate(zip(xs, axes, strict=True)):
        parts.append(tag("line", x1=x, x2=x, y1=top, y2=bottom, class_="upright"))
        parts.append(label(x, top - 16, shorten(axis.name, max(8, int(pitch / 7))), "head", "middle"))
        is_last = index == len(axes) - 1
        for place, name in axis.ticks:
            y = bottom - place * (bottom - top)
            parts.append(tag("line", x1=x - 3, x2=x + 3, y1=y, y2=y, class_="upright"))
            at, anchor = (x + 8, "start") if index else (x - 8, "end")
            shown = shorten(name, 26 if not index else max(6, int(pitch / 8)))
            # Nothing is drawn beside the outer axes; between the others a name is put above the lines that meet there.
            parts.append(label(at, y + 4 if is_last or not index else y - 5, shown, "tick haloed", anchor))
    return picture(WIDTH, bottom + 16, title, *parts)


def confusion_matrix(
    classes: Sequence[str], counts: Mapping[tuple[int, int], int], totals: Sequence[int], title: str
) -> str:
    """Draw a row per true class and a column per predicted one; darker cells hold a larger share of their row."""
    left = min(190.0, max((text_width(name, 11.5) for name in classes), default=0) + 14)
    cell = max(14.0, min(46.0, (640.0 - left) / max(1, len(classes))))
    top = 16 + min(150.0, max((text_width(name, 11.5) for name in classes), default=0) * 0.75 + 14)
    width, bottom = max(left + cell * len(classes) + 110, 420.0), top + cell * len(classes)
    parts = [label(left, bottom + 22, "columns: predicted class, rows: true class", "axis")]
    for index, name in enumerate(classes):
        middle = (index + 0.5) * cell
        parts.append(label(left - 8, top + middle + 4, shorten(name, 28), "row", "end"))
        x, y = left + middle + 3, top - 6
        parts.append(
            tag("text", escape(shorten(name, 22)), x=x, y=y, class_="row", transform=f"rotate(-48 {x:.1f} {y:.1f})")
        )
    for row, name in enumerate(classes):
        for column, other in enumerate(classes):
            count = counts.get((row, column), 0)
            share = count / totals[row] if totals[row] else 0.0
            hint = tooltip(f"{name} predicted as {other}: {count} of {totals[row]}" if row != column else
                           f"{name} predicted correctly: {count} of {totals[row]}")  # fmt: skip
            x, y = left + column * cell, top + row * cell
            css = "mark right" if row == column else "mark wrong"
            parts.append(tag("rect", x=x + 0.5, y=y + 0.5, width=cell - 1, height=cell - 1, class_="cell"))
            parts.append(tag("rect", hint, x=x + 0.5, y=y + 0.5, width=cell - 1, height=cell - 1, class_=css,
                             fill_opacity=round(share, 3)))  # fmt: skip
            if count and cell >= 18:
                css = "count on-strong" if share > 0.5 else "count"
                parts.append(label(x + cell / 2, y + cell / 2 + 4, str(count), css, "middle"))
    return picture(width, bottom + 32, title, *parts, css="chart natural")
