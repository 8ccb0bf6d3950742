"""Rank a store's snapshots for a dataset: the loop over a method's rungs."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Unpack

from raysnap.config.search_options import SearchKeywords, SearchOptions
from raysnap.datasets.dataset import Dataset
from raysnap.datasets.layout.account import Account
from raysnap.humanize import plural
from raysnap.progress import OnProgress, ignore_progress
from raysnap.search.candidates import (
    find_even_image_size,
    find_summaries,
    group_inputs,
    pick_static_baseline,
    that_see,
)
from raysnap.search.contest import Contest
from raysnap.search.engine.cached_source import CachedSource
from raysnap.search.engine.feature_cache import FeatureCache
from raysnap.search.engine.items import ProbeItems
from raysnap.search.engine.setup import Setup, open_executor
from raysnap.search.engine.source import FeatureSource, OnShare
from raysnap.search.engine.work import Work
from raysnap.search.narrowing import Field
from raysnap.search.outlook import Outlook, look_ahead
from raysnap.search.placing import place
from raysnap.search.plan.forecast import add_up
from raysnap.search.plan.rungs import plan_rungs
from raysnap.search.plan.tree import Candidate, PrefixTree, build_tree
from raysnap.search.result import ForecastReport, Gain, Narrowing, RankedSnapshot, SearchResult, SkippedSnapshot
from raysnap.store.store import Store
from raysnap.system import cache_place, giving_back_memory

log = logging.getLogger(__name__)

STAGES = ("plan", "load_blocks", "decode", "inference", "proxy")


def search(
    store: Store | Path | str,
    data: str | Path,
    options: SearchOptions | None = None,
    *,
    on_progress: OnProgress = ignore_progress,
    **keywords: Unpack[SearchKeywords],
) -> SearchResult:
    """Rank a store's snapshots by how good a start for a dataset they promise to be.

    >>> result = raysnap.rank_snapshots("store", "shapes-shape-a", where="architecture == 'mobilenet_v3_small'")
    >>> [candidate.rank for candidate in result.ranking]
    [1, 2, 3]

    `search(store, data, method="shared", num_train=160)` is short for
    `search(store, data, SearchOptions(method="shared", num_train=160))`; keywords replace those of `options`.

    Args:
        store: an open store or the folder of one.
        data: a dataset's name in `data_dir`, or the path of an ImageFolder.
        options: how to search, `SearchOptions()` by default; its fields are documented there.
        on_progress: called as images are decoded, and before and within each rung; "Search 2/5" is the third of five.

    Raises:
        UsageError: no candidates, an option that is unknown or out of bounds, or a budget that is too small.
        DataError: the dataset is missing or too small.
        StoreError: the store can't be opened.
    """
    started_s = time.perf_counter()
    if options is None or keywords:
        options = SearchOptions.of(options, keywords)
    store = store if isinstance(store, Store) else Store.open(Path(store))
    work = Work()
    with work.timed("plan"):
        summaries = find_summaries(store, options.where)
        setup = Setup(store.path, str(data), options)
        dataset = setup.open_dataset()
        field = Field(store, options, that_see(dataset, summaries))
        candidates = field.first_round()
    setup = replace(setup, options=field.options)
    outlooks: list[Outlook] = []
    accounts: list[Account] = []
    while candidates:
        outlook, contest, account = _hold_contest(
            setup, store, dataset, candidates, started_s, on_progress, is_first=not outlooks
        )
        if not contest.reports:  # there was no time for another round
            break
        outlooks.append(outlook)
        accounts.append(account)
        work.add(contest.source.work)
        with work.timed("plan"):
            field.record(contest)
            setup = setup.narrowed(outlook.choice)
            candidates = field.second_round() if len(field.rounds) == 1 else []
    with work.timed("plan"):
        narrowing = field.narrowing()
    account = replace(accounts[0], bad=tuple(dict.fromkeys(fault for one in accounts for fault in one.bad)))
    result = _sum_up(field, narrowing, outlooks, work, account, time.perf_counter() - started_s)
    if result.ranking:
        first = result.ranking[0]
        note = f"{plural(len(result.ranking), 'candidate')}, {first.name} first with {first.score:.3f}"
        on_progress("search", len(result.rungs), len(result.rungs), note)
    outlooks[0].learn(work, result.work["images_decoded"], result.forecast.came)
    return result


def _hold_contest(
    setup: Setup,
    store: Store,
    dataset: Dataset,
    candidates: Sequence[Candidate],
    started_s: float,
    on_progress: OnProgress,
    *,
    is_first: bool,
) -> tuple[Outlook, Contest, Account]:
    """Compare these candidates on the dataset, by the rungs of the method, as far as the time budget allows."""
    drawn = setup.draw_items(dataset, candidates)
    planning_s = time.perf_counter()
    tree = build_tree(candidates, sharing=setup.is_sharing)
    cache = None
    if setup.options.feature_cache_bytes:
        cache = FeatureCache(cache_place(drawn.dataset.root, "features"), setup.options.feature_cache_bytes)
    outlook = look_ahead(tree, drawn, setup, cache, started_s, is_first=is_first)
    choice = outlook.choice
    work = Work()
    work.timings_s["plan"] = time.perf_counter() - planning_s
    if num_undecoded := drawn.num_undecoded(choice.num_train, choice.num_test):
        on_progress("data", 0, 1, f"{plural(num_undecoded, 'image')} of {drawn.dataset.name} to decode")
    items = drawn.decode(choice.num_train, choice.num_test)
    if num_undecoded:
        on_progress("data", 1, 1, "decoded")
    account = drawn.dataset.account(items.bad)
    for line in account.lines() if is_first else ():
        log.warning("%s", line)
    work.timings_s["decode"] = items.decode_s
    setup = setup.narrowed(choice)
    rungs = plan_rungs(choice.method, len(candidates), len(items.train_labels), len(items.test_labels))

    def on_share(share: float) -> None:
        on_progress("search/features", round(100 * share), 100, "")

    with giving_back_memory(), _open_source(setup, store, tree, items, work, on_share) as source:
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


def _sum_up(
    field: Field, narrowing: Narrowing | None, outlooks: Sequence[Outlook], work: Work, data: Account, total_s: float
) -> SearchResult:
    """Return what the finished rounds found."""
    contests = [contest for contest, _ in field.rounds]
    candidates = {candidate.snapshot: candidate for contest in contests for candidate in contest.tree.candidates}
    skipped = {
        contest.tree.candidates[number].snapshot: error
        for contest in contests
        for number, error in sorted(contest.skipped.items())
    }
    losses = [contest.expected_loss for contest in contests if contest.expected_loss is not None]
    reports = tuple(report for contest in contests for report in contest.reports)
    options, first = contests[0].options, outlooks[0]
    ranking, records = place(field.rank(), field.store, field.summaries, first.dataset, options)
    stopped = contests[-1].stopped or "all_items"
    static = pick_static_baseline(list(candidates.values()), ranking)
    return SearchResult(
        method=first.choice.method,
        proxy=options.proxy,
        dataset=first.dataset.name,
        num_candidates=len(candidates),
        ranking=ranking,
        timings_s={"total": total_s} | dict.fromkeys(STAGES, 0.0) | dict(work.timings_s),
        work={
            "block_item_passes": work.block_item_passes,
            "flops": work.flops,
            "block_bytes_read": work.block_bytes_read,
            "images_decoded": sum(contest.items.num_decoded for contest in contests),
        },
        bound_s=work.bound_s + sum(contest.items.decode_s for contest in contests),
        precision=str(contests[0].source.dtype).removeprefix("torch."),
        peak_activation_bytes=work.peak_activation_bytes,
        peak_memory_bytes=work.peak_memory_bytes,
        skipped=tuple(SkippedSnapshot(one, candidates[one].name, error) for one, error in skipped.items()),
        expected_loss=sum(losses) if losses else None,
        stopped="time_budget" if first.is_shortened and stopped == "all_items" else stopped,
        rungs=reports,
        forecast=ForecastReport(
            asked=first.setup.options.method,
            reason=first.choice.reason,
            methods=add_up([outlook.choice.forecasts for outlook in outlooks]),
            came=first.look_back(work, reports, total_s),
        ),
        static_baseline=static,
        gain=_gain(contests, ranking, static),
        narrowing=narrowing,
        records=records,
        inputs=group_inputs(candidates.values()),
        even_image_size=find_even_image_size(candidates.values()),
        data=data,
    )


def _gain(contests: Sequence[Contest], ranking: Sequence[RankedSnapshot], static: RankedSnapshot | None) -> Gain | None:
    """Return what the first gains over the no-search baseline, by the first contest that both were in."""
    found = [one.gain(ranking[0].snapshot, static.snapshot) for one in contests] if static else []
    return next(filter(None, found), None)


@contextmanager
def _open_source(
    setup: Setup, store: Store, tree: PrefixTree, items: ProbeItems, work: Work, on_share: OnShare
) -> Iterator[FeatureSource]:
    """Open where the contest's features come from: this process, or workers on the running Ray."""
    if setup.options.workers == 1:
        with open_executor(setup, store, tree, items, work, on_share) as executor:
            yield executor
    else:
        from raysnap.search.engine.fleet import Fleet  # ray takes seconds to import

        with Fleet(tree, setup, work, on_share) as fleet:
            yield fleet
