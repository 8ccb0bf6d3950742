"""Rank a store's snapshots for a dataset: plan what to compare, compare it in one round or two, sum up.

Until the first round nothing needs torch, which takes a second or two to import; meanwhile images are decoded and
blocks read. What an earlier process asked is answered without it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from raysnap.config.search_options import SearchKeywords, SearchOptions
from raysnap.datasets.layout.account import Account
from raysnap.humanize import plural
from raysnap.progress import OnProgress, ignore_progress
from raysnap.search.answers import AnswerFile
from raysnap.search.candidates import (
    find_even_image_size,
    find_summaries,
    group_inputs,
    pick_static_baseline,
    that_see,
)
from raysnap.search.engine.items import DrawnItems
from raysnap.search.engine.setup import Setup
from raysnap.search.engine.work import Work
from raysnap.search.narrowing import Field
from raysnap.search.placing import place
from raysnap.search.plan.forecast import add_up
from raysnap.search.plan.tree import Candidate
from raysnap.search.read_ahead import ReadAhead
from raysnap.search.result import ForecastReport, Gain, Narrowing, RankedSnapshot, SearchResult, SkippedSnapshot
from raysnap.store.store import Store

if TYPE_CHECKING:
    from raysnap.search.contest import Contest
    from raysnap.search.outlook import Outlook

STAGES = ("plan", "load_blocks", "decode", "inference", "proxy")

log = logging.getLogger(__name__)


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
    drawn = setup.draw_items(dataset, candidates)
    blocks = ReadAhead(store)
    num_decoded_ahead, answer = 0, None
    if "torch" not in sys.modules:
        with work.timed("plan"):
            answer = AnswerFile.of(setup, field, candidates, drawn)
            known = answer.read() if answer else None
        if known:
            return _answer_again(known, work, started_s, on_progress)
        with work.timed("start"):
            num_decoded_ahead = _import_torch(setup, drawn, candidates, blocks, on_progress)
    from raysnap.search.rounds import hold_contest

    outlooks: list[Outlook] = []
    accounts: list[Account] = []
    while candidates:
        outlook, contest, account = hold_contest(
            setup,
            blocks,
            drawn,
            candidates,
            started_s,
            on_progress,
            num_bytes_ahead=0 if outlooks else blocks.num_bytes_ahead,
            is_first=not outlooks,
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
            drawn = setup.draw_items(dataset, candidates) if candidates else drawn
    with work.timed("plan"):
        narrowing = field.narrowing()
    account = replace(accounts[0], bad=tuple(dict.fromkeys(fault for one in accounts for fault in one.bad)))
    result = _sum_up(field, narrowing, outlooks, work, account, time.perf_counter() - started_s)
    _report_end(result, on_progress)
    num_decoded = result.work["images_decoded"] - num_decoded_ahead
    outlooks[0].learn(work, num_decoded, work.block_bytes_read - blocks.num_bytes_ahead, result.forecast.came)
    if answer:
        answer.keep(result)
    return result


def _answer_again(known: SearchResult, work: Work, started_s: float, on_progress: OnProgress) -> SearchResult:
    """Return the answer of an earlier search, with what is to be said of the dataset."""
    for line in known.data.lines():
        log.warning("%s", line)
    result = known.found_again({**work.timings_s, "total": time.perf_counter() - started_s})
    _report_end(result, on_progress)
    return result


def _report_end(result: SearchResult, on_progress: OnProgress) -> None:
    if result.ranking:
        first = result.ranking[0]
        note = f"{plural(len(result.ranking), 'candidate')}, {first.name} first with {first.score:.3f}"
        on_progress("search", len(result.rungs), len(result.rungs), note)


def _import_torch(
    setup: Setup, drawn: DrawnItems, candidates: Sequence[Candidate], blocks: ReadAhead, on_progress: OnProgress
) -> int:
    """Import what computes, meanwhile decode the items, unless a time budget leaves open which, and then read blocks.

    Returns:
        How many images were decoded.

    Raises:
        DataError: as `DrawnItems.decode` raises it.
    """
    on_progress("search/libraries", 0, 1, "")
    with ThreadPoolExecutor(1) as beside:
        importing = beside.submit(import_module, "raysnap.search.rounds")
        num_decoded = 0
        if setup.options.time_budget_s is None:
            num_decoded = drawn.decode(len(drawn.train), len(drawn.test), on_progress, is_busy=True).num_decoded
        blocks.read(setup, drawn.dataset, candidates, importing.done)
        importing.result()
    on_progress("search/libraries", 1, 1, "")
    return num_decoded


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
    ranking, records = place(field.rank(), field.store, field.summaries, first.dataset, field.records)
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
