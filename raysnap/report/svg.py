"""Pieces of SVG as strings: elements, escaped text, tick values. What charts.py draws with.

Every piece is well-formed XML whatever the names in it hold; colours come from CSS classes of the page.
"""

from __future__ import annotations

import html
import math

from raysnap.humanize import clean

FONT_PX = 12


WIDTH = 960
NUM_CATEGORIES = 8


def tag(name: str, *children: str, **attributes: object) -> str:
    """One element; attributes are escaped, children are markup. `class_` is `class`, `_` in a name is `-`."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_attribute(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>{''.join(children)}</{name}>" if children else f"<{name}{written}/>"


def label(x: float, y: float, text: str, css: str = "label", anchor: str = "start") -> str:
    """A line of text that ends, starts or is centred at (x, y), the baseline."""
    return tag("text", escape(text), x=x, y=y, class_=css, text_anchor=anchor)


def tooltip(text: str) -> str:
    """The `<title>` of the element it stands in, which browsers show on hover."""
    return tag("title", escape(text))


def picture(width: float, height: float, title: str, *children: str, css: str = "chart") -> str:
    """A whole inline `<svg>` that scales with its container and tells screen readers its title."""
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
    """The text as XML character data."""
    return html.escape(clean(text), quote=False)


def shorten(text: str, max_chars: int) -> str:
    """The text, its middle replaced by an ellipsis where it is longer than `max_chars`."""
    if len(text) <= max_chars:
        return text
    tail = (max_chars - 1) // 2
    return text[: max_chars - 1 - tail] + "…" + (text[-tail:] if tail else "")


def text_width(text: str, font_px: float = FONT_PX) -> float:
    """About how wide the text is in a sans-serif font, in pixels."""
    return len(text) * font_px * 0.56


def ticks(low: float, high: float, num_ticks: int = 5) -> list[float]:
    """Round values from at or below `low` to at or above `high`, about `num_ticks` of them."""
    if not high > low:
        high = low + 1
    raw_step = (high - low) / max(1, num_ticks - 1)
    power = 10.0 ** math.floor(math.log10(raw_step))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw_step * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def ticks_within(low: float, high: float, num_ticks: int = 5) -> list[float]:
    """Those of the round values that lie between `low` and `high`."""
    slack = (high - low) * 1e-9
    return [value for value in ticks(low, high, num_ticks) if low - slack <= value <= high + slack]


def log_ticks(low: float, high: float, max_ticks: int = 10) -> list[float]:
    """Values between `low` and `high`, both positive, for a logarithmic axis: 1, 2 and 5 of each power, or 1 alone."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        values = [float(f"{factor}e{power}") for power in powers for factor in factors]
        found = [value for value in values if low <= value <= high]
        if len(found) <= max_ticks:
            break
    return found


def _attribute(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return clean(str(value))


def category(index: int, num_series: int) -> str:
    """The CSS class of one of so many series; too many share one colour."""
    return f"cat-{index}" if num_series <= NUM_CATEGORIES else "cat-many"
