"""Look ahead before a search runs, and back after it: what its methods would take on this device, and what came.

The pace of the device comes from earlier searches; what none of them ran is measured first, shortly, if there is
something to decide.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from raysnap.datasets.dataset import Dataset
from raysnap.search.engine.cached_source import find_cached
from raysnap.search.engine.calibration import measure_kinds
from raysnap.search.engine.feature_cache import FeatureCache
from raysnap.search.engine.items import DrawnItems
from raysnap.search.engine.setup import Setup
from raysnap.search.engine.work import Work
from raysnap.search.known_pace import learn_corrections, learn_speeds, read_pace, write_pace
from raysnap.search.plan.choice import Choice, choose
from raysnap.search.plan.forecast import STAGES, Forecast, ForecastRung, Question
from raysnap.search.plan.rungs import Rung
from raysnap.search.plan.tree import PrefixTree, find_misfit, needed_nodes
from raysnap.search.result import RungReport

# A calibration takes up to this part of what the search is forecast to take, and up to so many seconds.
CALIBRATION_SHARE = 0.03
CALIBRATION_S = 0.3

# A rung is forecast by what those before it took; that is believed up to this factor.
MOST_AMISS = 4.0


@dataclass(frozen=True)
class Outlook:
    """What a search was asked, and the method and items chosen for it, before any image was decoded.

    Attributes:
        dataset: the one asked about.
        is_shortened: whether the time budget allows only a part of the items.
    """

    setup: Setup
    question: Question
    choice: Choice
    dataset: Dataset
    is_shortened: bool

    def has_time(
        self, rungs: Sequence[Rung], reports: Sequence[RungReport], num_candidates: int, elapsed_s: float
    ) -> bool:
        """Return whether the next rung is forecast to end within the time budget.

        Args:
            reports: of the rungs so far; what they took corrects the forecast.
            num_candidates: how many would enter the next one.
            elapsed_s: seconds since the call.
        """
        budget_s = self.setup.options.time_budget_s
        if budget_s is None:
            return True
        entrants = [*(report.num_candidates for report in reports), num_candidates]
        forecasts_s = [
            sum(self.question.rung_s(self.choice.method, rung, num).values())
            for rung, num in zip(rungs, entrants, strict=False)
        ]
        forecast_s = self.choice.forecast.timings_s["load_blocks"] + sum(forecasts_s[:-1])
        amiss = sum(report.total_s for report in reports) / max(forecast_s, 1e-9) if reports else 1.0
        return forecasts_s[-1] * min(MOST_AMISS, max(1 / MOST_AMISS, amiss)) <= budget_s - elapsed_s

    def look_back(self, work: Work, reports: Sequence[RungReport], total_s: float) -> Forecast:
        """Return what came, in the form of the forecast; what no stage timed counts as inference."""
        timed_s = {stage: work.timings_s.get(stage, 0.0) for stage in STAGES if stage != "inference"}
        timings_s = {"start": self.choice.forecast.timings_s["start"]} | dict.fromkeys(STAGES, 0.0) | timed_s
        timings_s["inference"] = max(0.0, total_s - sum(timings_s.values()))
        rungs = tuple(
            ForecastRung(report.num_candidates, report.num_train, report.num_test, report.total_s) for report in reports
        )
        return Forecast(self.choice.method, timings_s | {"total": total_s}, work.image_forwards, rungs)

    def learn(self, work: Work, num_decoded: int, num_read_bytes: int, came: Forecast) -> None:
        """Keep what a search in this process says of the device's pace.

        Args:
            num_decoded: images decoded, and `num_read_bytes` bytes of blocks read, in the seconds of these stages: not
                those before, while torch was imported.
        """
        if self.setup.options.workers > 1:
            return
        question, rates = self.question, self.question.pace.rates
        usual_s = {
            "load_blocks": num_read_bytes / rates.read_bytes_per_s,
            "decode": num_decoded * rates.decode_s / question.pace.num_streams,
            "inference": sum(laps.total_s for laps in work.laps.values()) / question.pace.num_streams
            + question.rungs_s(len(came.rungs), is_first=True) * (work.block_item_passes > 0),
            question.proxy: sum(
                question.probes_s(came.method, rung.num_train, rung.num_test, rung.num_candidates)
                for rung in came.rungs
            ),
        }
        took_s = came.timings_s | {question.proxy: came.timings_s["proxy"]}
        pace = learn_speeds(question.pace, work.laps)
        write_pace(self.setup.numerics(), learn_corrections(pace, usual_s, took_s))


def look_ahead(
    tree: PrefixTree,
    drawn: DrawnItems,
    setup: Setup,
    cache: FeatureCache | None,
    started_s: float,
    *,
    num_bytes_ahead: int,
    is_first: bool,
) -> Outlook:
    """Forecast what the methods that the options allow would take, and choose one of them and its items.

    Args:
        started_s: when the search was called, by `time.perf_counter`.
        num_bytes_ahead: bytes of blocks that were read already.
        is_first: whether this is the search's first round; a second takes the same method and items.
    """
    options, question = setup.options, _pose(tree, drawn, setup, cache, num_bytes_ahead)
    budget_s = options.time_budget_s if is_first else None

    def choose_now() -> Choice:
        return choose(
            question,
            options.method,
            len(drawn.train),
            len(drawn.test),
            num_undecoded=drawn.num_undecoded,
            start_s=time.perf_counter() - started_s,
            budget_s=budget_s,
            tolerance=options.tolerance,
        )

    choice = choose_now()
    kinds = question.unmeasured_kinds()
    if kinds and options.workers == 1 and (choice.is_open or budget_s is not None):
        left_s = choice.forecast.total_s - choice.forecast.timings_s["start"]
        numerics = setup.numerics()
        with numerics.applied():
            speeds = measure_kinds(kinds, numerics, min(CALIBRATION_S, CALIBRATION_SHARE * left_s))
        question = replace(question, pace=replace(question.pace, speeds={**question.pace.speeds, **speeds}))
        choice = choose_now()
    is_shortened = (choice.num_train, choice.num_test) != (len(drawn.train), len(drawn.test))
    return Outlook(setup, question, choice, drawn.dataset, is_shortened)


def _pose(
    tree: PrefixTree, drawn: DrawnItems, setup: Setup, cache: FeatureCache | None, num_bytes_ahead: int
) -> Question:
    """Return the question, with what is known of this device."""
    numerics, num_workers = setup.numerics(), setup.options.workers
    pace = read_pace(numerics)
    if num_workers > 1:
        pace = replace(pace, num_streams=max(num_workers, pace.num_streams))
    candidates = [number for number, candidate in enumerate(tree.candidates) if find_misfit(candidate) is None]
    nodes = needed_nodes(tree, candidates)
    if cache is not None:
        num_items = len(drawn.train) + len(drawn.test)
        nodes -= find_cached(tree, candidates, cache, numerics.fingerprint, num_items)
    num_classes = len({item.label for item in drawn.train})
    proxy = setup.options.proxy
    return Question(tree, tuple(candidates), frozenset(nodes), proxy, num_classes, pace, num_bytes_ahead)
