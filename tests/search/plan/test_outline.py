"""A prefix tree in a terminal: chains are one branch, and however many candidates there are, the lines are few."""

import pytest
from rich.console import Console

from raysnap.cli.search_tables import prefix_tree
from raysnap.search.plan.outline import MAX_BRANCHES, outline
from raysnap.search.plan.tree import build_tree
from tests.support.search_stores import candidate, digest
from tests.support.search_trees import star


def walk(branches):
    for branch in branches:
        yield branch
        yield from walk(branch.branches)


def test_chains_fold_and_the_shares_add_up():
    own = [digest(index) for index in range(9)]
    tree = build_tree(
        [candidate("base", own), candidate("twin", own), candidate("other", [*own[:7], digest("a"), digest("b")])],
        sharing=True,
    )
    (trunk,) = outline(tree)
    assert (trunk.num_blocks, trunk.num_candidates, trunk.first_block, trunk.names) == (7, 3, "stem", ())
    assert [(branch.names, branch.num_blocks) for branch in trunk.branches] == [(("base", "twin"), 2), (("other",), 2)]
    assert trunk.flops_share == pytest.approx(1)
    assert 0 < sum(branch.flops_share for branch in trunk.branches) < 1


@pytest.mark.parametrize("num_snapshots", [1, 2, 60, 3000])
def test_no_tree_is_too_large_to_read(num_snapshots):
    branches = outline(star(num_snapshots, "uniform"))
    shown = list(walk(branches))
    assert len([branch for branch in shown if not branch.num_folded]) <= MAX_BRANCHES
    assert len(shown) <= 2 * MAX_BRANCHES
    assert sum(branch.flops_share for branch in branches) == pytest.approx(1)
    assert sum(branch.num_candidates for branch in branches) == num_snapshots
    console = Console(width=200)
    with console.capture() as capture:
        console.print(prefix_tree(branches, "What candidates share"))
    lines = capture.get().splitlines()
    assert len(lines) == 1 + len(shown) and all(len(line) < 200 for line in lines)


def test_who_can_not_run_is_left_out():
    tree = build_tree([candidate("short", [digest("1")]), candidate("none", [])], sharing=True)
    assert outline(tree) == ()
