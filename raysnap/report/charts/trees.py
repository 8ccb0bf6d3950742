"""Snapshots that share blocks: the prefix tree as a dendrogram, and a map of which snapshot holds which block."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from raysnap.report.charts.svg import NUM_CATEGORIES, WIDTH, category, label, picture, shorten, tag, text_width, tooltip

MIN_NAMED_ROW_PX = 11
MAX_KEYED_GROUPS = 8


@dataclass(frozen=True)
class MapRow:
    """One snapshot: its name, the digests of its blocks in order, and the group that gives its colour in the tree."""

    name: str
    digests: tuple[str, ...]
    group: str = ""


@dataclass(frozen=True)
class MapColumn:
    """One block position: the block's name and its size as text."""

    name: str
    note: str = ""


@dataclass(frozen=True)
class Branch:
    """A node of the collapsed tree: rows `start` to `end` (exclusive) share exactly the first `depth` blocks."""

    start: int
    end: int
    depth: int
    children: tuple[Branch, ...] = ()


def collapse_tree(rows: Sequence[MapRow], start: int = 0, end: int | None = None, depth: int = 0) -> Branch:
    """Return the tree of rows in tree order with its chains collapsed: each node is a fork or a leaf."""
    end = len(rows) if end is None else end
    num_blocks = len(rows[start].digests)
    while depth < num_blocks and len({row.digests[depth] for row in rows[start:end]}) == 1:
        depth += 1
    if depth == num_blocks or end - start == 1:
        return Branch(start, end, num_blocks)
    children, first = [], start
    for _, same in groupby(rows[start:end], key=lambda row: row.digests[depth]):
        past = first + len(list(same))
        children.append(collapse_tree(rows, first, past, depth))
        first = past
    return Branch(start, end, depth, tuple(children))


def prefix_tree(rows: Sequence[MapRow], columns: Sequence[MapColumn], title: str) -> str:
    """Draw the tree of shared blocks, from the stem on the left to the snapshots on the right.

    Snapshots that share blocks follow one line, which forks at the first block that differs; the number at a fork
    counts the snapshots beyond it. A chain of blocks without a fork is one line, whose tooltip names its blocks.
    """
    rows = sort_by_prefix(rows)
    groups = list(dict.fromkeys(row.group for row in rows if row.group))
    keyed = groups if len(groups) <= MAX_KEYED_GROUPS else []
    css_of = {group: category(index, len(groups)) for index, group in enumerate(groups)}
    pitch = max(13.0, min(22.0, 1600 / max(1, len(rows))))
    right = WIDTH - min(330.0, max((text_width(row.name, 11.5) for row in rows), default=0) + 20)
    left, top = 14.0, 66.0 if keyed else 46.0
    step = (right - left) / max(1, len(columns))
    bottom = top + len(rows) * pitch
    parts = [_group_key(keyed, css_of), _depth_axis(columns, left, step, top, bottom)]
    tree = collapse_tree(rows)
    _draw_branch(tree, 0, rows, columns, (left, top, step, pitch), css_of, parts)
    for index, row in enumerate(rows):
        y = top + (index + 0.5) * pitch
        hint = tooltip(f"{row.name}{f', {row.group}' if row.group else ''}")
        parts.append(tag("circle", hint, cx=right, cy=y, r=4, class_=f"mark leaf {css_of.get(row.group, 'cat-many')}"))
        parts.append(label(right + 10, y + 4, shorten(row.name, 48), "row"))
    return picture(WIDTH, bottom + 12, title, *parts)


def _draw_branch(
    branch: Branch,
    from_depth: int,
    rows: Sequence[MapRow],
    columns: Sequence[MapColumn],
    frame: tuple[float, float, float, float],
    css_of: dict[str, str],
    parts: list[str],
) -> float:
    """Append the line that leads to a node and everything beyond it to `parts`; return the node's y."""
    left, top, step, pitch = frame
    heights = [_draw_branch(child, branch.depth, rows, columns, frame, css_of, parts) for child in branch.children]
    y = (heights[0] + heights[-1]) / 2 if heights else top + ((branch.start + branch.end) / 2) * pitch
    x, x_from = left + branch.depth * step, left + from_depth * step
    parts.append(_branch_line(branch, from_depth, rows, columns, css_of, (x_from, x, y)))
    num_below = branch.end - branch.start
    if not branch.children:
        if num_below > 1:  # equal in every block
            first, last = top + (branch.start + 0.5) * pitch, top + (branch.end - 0.5) * pitch
            parts.append(tag("line", x1=x, x2=x, y1=first, y2=last, class_="fork"))
        return y
    parts.append(tag("line", x1=x, x2=x, y1=heights[0], y2=heights[-1], class_="fork"))
    after = f"after {columns[branch.depth - 1].name}" if branch.depth else "from the first block on"
    hint = tooltip(f"{num_below} snapshots differ {after}")
    radius = 7.0 if num_below < 10 else 9.0 if num_below < 100 else 11.0
    parts.append(tag("circle", hint, cx=x, cy=y, r=radius, class_="mark fork-count"))
    parts.append(label(x, y + 3.5, str(num_below), "fork-number", "middle"))
    return y


def _branch_line(
    branch: Branch,
    from_depth: int,
    rows: Sequence[MapRow],
    columns: Sequence[MapColumn],
    css_of: dict[str, str],
    place: tuple[float, float, float],
) -> str:
    """Draw the line that leads to a node, thicker for more snapshots; `place` is (x from, x to, y)."""
    x_from, x, y = place
    names = [column.name for column in columns[from_depth : branch.depth]]
    blocks = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}, {len(names)} blocks" if names else "no block"
    num_below = branch.end - branch.start
    holders = f"shared by {num_below} snapshots" if num_below > 1 else f"only in {rows[branch.start].name}"
    group = rows[branch.start].group if num_below == 1 else ""
    css = f"branch {css_of.get(group, '')}" if num_below == 1 else "branch trunk"
    width = 1.6 + 5.4 * math.sqrt((num_below - 1) / max(1, len(rows) - 1)) if num_below > 1 else 1.6
    hint = tooltip(f"{blocks}: {holders}")
    return tag("line", hint, x1=x_from, x2=x, y1=y, y2=y, stroke_width=width, class_=f"mark {css}")


def _depth_axis(columns: Sequence[MapColumn], left: float, step: float, top: float, bottom: float) -> str:
    """Draw the blocks' names along the top, every n-th if they don't all fit, with a faint line under each."""
    longest = max((text_width(column.name, 11) for column in columns), default=0) + 8
    every = max(1, math.ceil(longest / step))
    parts = []
    for index in range(0, len(columns), every):
        x = left + (index + 1) * step
        parts.append(tag("line", x1=x, x2=x, y1=top - 6, y2=bottom, class_="grid"))
        parts.append(label(x - 3, top - 12, columns[index].name, "head", "end" if index or step > longest else "start"))
    return tag("g", *parts)


def _group_key(groups: Sequence[str], css_of: dict[str, str]) -> str:
    parts, x = [], 14.0
    for group in groups:
        parts.append(tag("circle", cx=x, cy=14, r=4, class_=f"leaf {css_of[group]}"))
        parts.append(label(x + 10, 18, shorten(group, 24), "legend"))
        x += 30 + text_width(shorten(group, 24))
    return tag("g", *parts)


def block_map(rows: Sequence[MapRow], columns: Sequence[MapColumn], title: str) -> str:
    """Draw a map of snapshots (rows) and blocks (columns); equal blocks in adjacent rows are one cell.

    Rows are in the order of the prefix tree, so that a cell's height is the number of snapshots that share the block
    and everything before it. Cells of blocks that several snapshots hold are pale.
    """
    rows = sort_by_prefix(rows)
    holders = Counter(digest for row in rows for digest in set(row.digests))
    height = max(3.0, min(20.0, 900 / max(1, len(rows))))
    has_names = height >= MIN_NAMED_ROW_PX
    left = min(270.0, max((text_width(row.name, 11.5) for row in rows), default=0) + 14) if has_names else 8.0
    pitch = (WIDTH - left) / max(1, len(columns))
    top = 50.0
    parts = [_column_names(columns, left, pitch)]
    for index, row in enumerate(rows if has_names else []):
        y = top + (index + 0.5) * height + 4
        parts.append(label(left - 10, y, shorten(row.name, 40), "row" if height >= 14 else "row tight", "end"))
    for column, head in enumerate(columns):
        tones: dict[str, int] = {}
        start = 0
        for digest, run in groupby(row.digests[column] for row in rows):
            num_rows = len(list(run))
            tone = None if holders[digest] == 1 else tones.setdefault(digest, len(tones) % NUM_CATEGORIES)
            box = (left + column * pitch + 1, top + start * height + 0.75, pitch - 2, num_rows * height - 1.5)
            owner = rows[start].name if holders[digest] == 1 else None
            parts.append(_cell(box, head, holders[digest], tone, owner))
            start += num_rows
    return picture(WIDTH, top + len(rows) * height + 6, title, *parts)


def _cell(
    box: tuple[float, float, float, float], column: MapColumn, num_holders: int, tone: int | None, owner: str | None
) -> str:
    x, y, width, height = box
    size = f" ({column.note})" if column.note else ""
    holders = f"only in {owner}" if owner else f"stored once for {num_holders} snapshots"
    css = "mark own" if tone is None else f"mark shared tone-{tone}"
    hint = tooltip(f"{column.name}{size}: {holders}")
    height = max(height, 1.0)
    rect = tag("rect", hint, x=x, y=y, width=width, height=height, rx=min(3.0, height / 3), class_=css)
    fits = tone is not None and height >= 15 and width > text_width(str(num_holders), 11) + 4
    middle = label(x + width / 2, y + height / 2 + 4, str(num_holders), "inside on-shared", "middle") if fits else ""
    return rect + middle


def _column_names(columns: Sequence[MapColumn], left: float, pitch: float) -> str:
    """Draw the names and notes above the columns, every n-th if they don't all fit."""
    longest = (
        max((max(text_width(column.name, 11), text_width(column.note, 10.5)) for column in columns), default=0) + 6
    )
    step = max(1, math.ceil(longest / pitch))
    parts = []
    for index in range(0, len(columns), step):
        centred = step == 1
        x = left + (index + 0.5) * pitch if centred else left + index * pitch + 1
        anchor = "middle" if centred else "start"
        parts.append(label(x, 24, columns[index].name, "head", anchor))
        parts.append(label(x, 40, columns[index].note, "tick", anchor))
    return tag("g", *parts)


def sort_by_prefix(rows: Sequence[MapRow]) -> list[MapRow]:
    """Return the rows with equal prefixes next to each other, the largest groups first."""
    num_with: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        num_with.update(row.digests[:length] for length in range(1, len(row.digests) + 1))

    def key(row: MapRow) -> tuple[tuple[int, str], ...]:
        prefixes = (row.digests[:length] for length in range(1, len(row.digests) + 1))
        return tuple((-num_with[prefix], prefix[-1]) for prefix in prefixes)

    return sorted(rows, key=key)
