"""Prefix trees and block maps."""

from itertools import pairwise

from raysnap.report.charts import trees as tree_charts
from tests.support.chart_examples import block_map, marks, parsed, texts


def test_a_tree_collapses_chains_and_has_every_snapshot():
    rows = [
        tree_charts.MapRow(str(n), tuple(f"{depth}:{n % 2 ** max(0, depth - 3)}" for depth in range(9)))
        for n in range(16)
    ]
    ordered = tree_charts.sort_by_prefix(rows)
    tree = tree_charts.collapse_tree(ordered)
    assert (tree.start, tree.end, tree.depth) == (0, 16, 4)
    leaves, waiting = [], [tree]
    while waiting:
        branch = waiting.pop()
        waiting += branch.children
        assert len(branch.children) != 1
        leaves += [] if branch.children else list(range(branch.start, branch.end))
    assert sorted(leaves) == list(range(16))


def test_140_names_beside_a_tree_do_not_overlap():
    rows = [
        tree_charts.MapRow(
            f"snapshot {n}", tuple(f"{depth}:{n % 2 ** max(0, depth - 1)}" for depth in range(10)), str(n % 4)
        )
        for n in range(140)
    ]
    svg = tree_charts.prefix_tree(rows, [tree_charts.MapColumn(str(depth)) for depth in range(10)], "t")
    ys = sorted(float(e.get("y")) for e in parsed(svg).iter("text") if (e.text or "").startswith("snapshot "))
    assert len(ys) == 140
    assert all(b - a >= 12.9 for a, b in pairwise(ys))


def test_snapshots_that_are_equal_in_every_block_end_together():
    rows = [tree_charts.MapRow(name, ("a", "b")) for name in ("one", "two")]
    tree = tree_charts.collapse_tree(rows)
    assert (tree.end, tree.children) == (2, ())
    svg = tree_charts.prefix_tree(rows, [tree_charts.MapColumn("x"), tree_charts.MapColumn("y")], "t")
    assert {"one", "two"} <= set(texts(svg))


def test_a_cells_height_is_the_number_of_sharing_snapshots():
    svg = block_map()
    heights = {mark.find("title").text: float(mark.get("height")) for mark in marks(svg)}
    shared = {text: height for text, height in heights.items() if "stored once for" in text}
    assert sorted(text.split("stored once for ")[1] for text in shared) == ["2 snapshots", "3 snapshots"]
    assert max(heights.values()) == shared["one (1 kB): stored once for 3 snapshots"]
    assert {"3", "2"} <= set(texts(svg))


def test_cells_cover_every_snapshot_and_block_once():
    rows = [tree_charts.MapRow(str(n), tuple(f"{depth}:{n % 2**depth}" for depth in range(5))) for n in range(16)]
    svg = tree_charts.block_map(rows, [tree_charts.MapColumn(str(depth)) for depth in range(5)], "tree")
    height = min(float(mark.get("height")) for mark in marks(svg)) + 1.5
    assert len(marks(svg)) == 1 + 2 + 4 + 8 + 16
    assert sum(round((float(mark.get("height")) + 1.5) / height) for mark in marks(svg)) == 16 * 5
