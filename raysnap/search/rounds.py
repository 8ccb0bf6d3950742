"""Hold one round of a search: look ahead, decode, and run the rungs of the method that was chosen."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest

from raysnap.datasets.layout.account import Account
from raysnap.humanize import plural
from raysnap.progress import OnProgress
from raysnap.search.contest import Contest
from raysnap.search.engine.cached_source import CachedSource
from raysnap.search.engine.feature_cache import FeatureCache
from raysnap.search.engine.items import DrawnItems, ProbeItems
from raysnap.search.engine.setup import Setup, open_executor
from raysnap.search.engine.source import BlockReader, FeatureSource, OnShare
from raysnap.search.engine.work import Work
from raysnap.search.outlook import Outlook, look_ahead
from raysnap.search.plan.rungs import plan_rungs
from raysnap.search.plan.tree import Candidate, PrefixTree, build_tree
from raysnap.system import cache_place, giving_back_memory

log = logging.getLogger(__name__)


def hold_contest(
    setup: Setup,
    blocks: BlockReader,
    drawn: DrawnItems,
    candidates: Sequence[Candidate],
    started_s: float,
    on_progress: OnProgress,
    *,
    num_bytes_ahead: int,
    is_first: bool,
) -> tuple[Outlook, Contest, Account]:
    """Compare these candidates on the dataset, by the rungs of the method, as far as the time budget allows.

    Args:
        started_s: when the search was called, by `time.perf_counter`.
        num_bytes_ahead: bytes of their blocks that were read already.
        is_first: whether this is the search's first round.
    """
    planning_s = time.perf_counter()
    tree = build_tree(candidates, sharing=setup.is_sharing)
    cache = None
    if setup.options.feature_cache_bytes:
        cache = FeatureCache(cache_place(drawn.dataset.root, "features"), setup.options.feature_cache_bytes)
    outlook = look_ahead(tree, drawn, setup, cache, started_s, num_bytes_ahead=num_bytes_ahead, is_first=is_first)
    choice = outlook.choice
    work = Work()
    work.timings_s["plan"] = time.perf_counter() - planning_s
    items = drawn.decode(choice.num_train, choice.num_test, on_progress)
    account = drawn.dataset.account(items.bad)
    for line in account.lines() if is_first else ():
        log.warning("%s", line)
    work.timings_s["decode"] = items.decode_s
    setup = setup.narrowed(choice)
    rungs = plan_rungs(choice.method, len(candidates), len(items.train_labels), len(items.test_labels))

    def on_share(share: float) -> None:
        on_progress("search/features", round(100 * share), 100, "")

    with giving_back_memory(), _open_source(setup, blocks, tree, items, work, on_share) as source:
        if cache is not None:
            source = CachedSource(source, tree, items, len(items.positions), cache)
        contest = Contest(tree, source, items, setup.options, setup.pick_device())
        for number, (rung, following) in enumerate(zip_longest(rungs, rungs[1:])):
            elapsed_s = time.perf_counter() - started_s
            must_begin = is_first and not contest.reports
            if not must_begin and not outlook.has_time(rungs, contest.reports, len(contest.survivors), elapsed_s):
                contest.stopped = "time_budget"
                break
            asked = f"{rung.train_stop} train and {rung.test_stop} test items"
            note = f"{plural(len(contest.survivors), 'candidate')} on {asked}"
            on_progress("search", number, len(rungs), note if is_first else f"second round: {note}")
            contest.run_rung(rung, following)
            if contest.stopped:
                break
    return outlook, contest, account


@contextmanager
def _open_source(
    setup: Setup, blocks: BlockReader, tree: PrefixTree, items: ProbeItems, work: Work, on_share: OnShare
) -> Iterator[FeatureSource]:
    """Open where the contest's features come from: this process, or workers on the running Ray."""
    if setup.options.workers == 1:
        with open_executor(setup, blocks, tree, items, work, on_share) as executor:
            yield executor
    else:
        from raysnap.search.engine.fleet import Fleet  # ray takes seconds to import

        with Fleet(tree, setup, work, on_share) as fleet:
            yield fleet
