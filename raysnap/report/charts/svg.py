"""Pieces of SVG as strings: elements, escaped text, tick values.

Every piece is well-formed XML whatever the names in it hold; colours come from CSS classes of the page.
"""

from __future__ import annotations

import html
import math

from raysnap.humanize import shown

FONT_PX = 12
WIDTH = 960  # of a chart that fills the page, in pixels
NUM_CATEGORIES = 8  # colours of series


def tag(name: str, *children: str, **attributes: object) -> str:
    """Return one element.

    Args:
        name: the element's.
        children: markup.
        attributes: escaped here; `class_` is written `class`, and `_` in a name is `-`; None is left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_attribute(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>{''.join(children)}</{name}>" if children else f"<{name}{written}/>"


def label(x: float, y: float, text: str, css: str = "label", anchor: str = "start") -> str:
    """Return a line of text whose baseline starts, ends or is centred at (x, y)."""
    return tag("text", escape(text), x=x, y=y, class_=css, text_anchor=anchor)


def tooltip(text: str) -> str:
    """Return a `<title>`, which browsers show when the pointer is over its parent element."""
    return tag("title", escape(text))


def picture(width: float, height: float, title: str, *children: str, css: str = "chart") -> str:
    """Return a whole inline `<svg>` that scales with its container and gives screen readers its title."""
    return tag(
        "svg",
        tooltip(title),
        *children,
        viewBox=f"0 0 {_attribute(width)} {_attribute(height)}",
        width=width,
        height=height,
        class_=css,
        role="img",
        aria_label=title,
    )


def escape(text: str) -> str:
    """Return the text as XML character data."""
    return html.escape(shown(text), quote=False)


def shorten(text: str, max_chars: int) -> str:
    """Return the text, its middle replaced by an ellipsis if it is longer than `max_chars`."""
    if len(text) <= max_chars:
        return text
    tail = (max_chars - 1) // 2
    return text[: max_chars - 1 - tail] + "…" + (text[-tail:] if tail else "")


def text_width(text: str, font_px: float = FONT_PX) -> float:
    """Estimate the width of the text in a sans-serif font, in pixels."""
    return len(text) * font_px * 0.56


def ticks(low: float, high: float, num_ticks: int = 5) -> list[float]:
    """Return about `num_ticks` round values, the first at or below `low`, the last at or above `high`."""
    if not high > low:
        low, high = (max(0.0, low - 0.1), min(1.0, low + 0.1)) if 0 <= low <= 1 else (low, low + 1)
    raw_step = (high - low) / max(1, num_ticks - 1)
    power = 10.0 ** math.floor(math.log10(raw_step))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw_step * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def ticks_within(low: float, high: float, num_ticks: int = 5) -> list[float]:
    """Return the round values of `ticks` that are between `low` and `high`."""
    slack = (high - low) * 1e-9
    return [value for value in ticks(low, high, num_ticks) if low - slack <= value <= high + slack]


def log_ticks(low: float, high: float, max_ticks: int = 10) -> list[float]:
    """Return ticks of a logarithmic axis between two positive values: 1, 2 and 5 times powers of ten, or fewer."""
    found: list[float] = []
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    all_factors: tuple[tuple[int, ...], ...] = ((1, 2, 5), (1, 3), (1,))
    for factors in all_factors:
        values = [float(f"{factor}e{power}") for power in powers for factor in factors]
        found = [value for value in values if low <= value <= high]
        if len(found) <= max_ticks:
            break
    return found


def _attribute(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return shown(str(value))


def category(index: int, num_series: int) -> str:
    """Return the CSS class of one of `num_series` series; more than there are colours share one."""
    return f"cat-{index}" if num_series <= NUM_CATEGORIES else "cat-many"
