"""Rank candidates rung by rung: get features, score them, keep the best."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch

from raysnap.config.search_options import SearchOptions
from raysnap.search.engine.items import ProbeItems
from raysnap.search.engine.source import FeatureSource
from raysnap.search.plan.rungs import Rung
from raysnap.search.plan.tree import PrefixTree, find_misfit
from raysnap.search.probes.confidence import find_survivors, tied_with
from raysnap.search.probes.proxies import score_candidates
from raysnap.search.probes.score import Score
from raysnap.search.result import RankedSnapshot, RungReport


@dataclass
class Contest:
    """The state between rungs: the remaining candidates, the features so far, and every score.

    Attributes:
        device: where features are scored.
        confidence: confidence that the remaining rungs must have, together, to drop candidates beyond those they must
            keep; 0 drops these at once.
        survivors: the candidates that enter the next rung.
        scores: each candidate's rungs so far, with its score in each.
        skipped: why a candidate could not be scored.
        reports: what each rung did.
    """

    tree: PrefixTree
    source: FeatureSource
    items: ProbeItems
    options: SearchOptions
    device: torch.device
    confidence: float = field(init=False)
    survivors: list[int] = field(default_factory=list)
    train_features: dict[int, np.ndarray] = field(default_factory=dict)
    test_features: dict[int, np.ndarray] = field(default_factory=dict)
    scores: dict[int, list[tuple[Rung, Score]]] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)
    reports: list[RungReport] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.confidence = self.options.confidence if self.options.method == "nested" else 0.0
        reasons = {number: find_misfit(candidate) for number, candidate in enumerate(self.tree.candidates)}
        self.skipped = {number: reason for number, reason in reasons.items() if reason is not None}
        self.survivors = [number for number in reasons if number not in self.skipped]

    def run_rung(self, rung: Rung, *, num_later: int) -> None:
        """Get the rung's new features, score every survivor on all its features, and keep the best.

        Args:
            num_later: how many rungs come after it.
        """
        work, started_s, num_candidates = self.source.work, time.perf_counter(), len(self.survivors)
        is_last = num_later == 0
        before = (work.block_item_passes, work.flops, work.block_bytes_read)
        if self.survivors:
            self._add_features(rung, is_last=is_last)
        with work.timed("proxy"):
            for number, score in zip(self.survivors, self._score(rung), strict=True):
                self.scores.setdefault(number, []).append((rung, score))
            if not is_last:
                self._keep_the_best(rung, num_later)
        self.source.keep(() if is_last else self.survivors)
        after = (work.block_item_passes, work.flops, work.block_bytes_read)
        passes, flops, num_bytes = (new - old for new, old in zip(after, before, strict=True))
        self.reports.append(
            RungReport(
                num_train=rung.train_stop,
                num_test=rung.test_stop,
                num_candidates=num_candidates,
                num_kept=len(self.survivors),
                num_tied=0 if is_last else max(0, len(self.survivors) - rung.num_kept),
                block_item_passes=passes,
                flops=flops,
                block_bytes_read=num_bytes,
                total_s=time.perf_counter() - started_s,
            )
        )

    def _score(self, rung: Rung) -> list[Score]:
        """Return the survivors' scores, in their order."""
        return score_candidates(
            self.options.proxy,
            [self.train_features[number] for number in self.survivors],
            self.items.train_labels[: rung.train_stop],
            [self.test_features[number] for number in self.survivors],
            self.items.test_labels[: rung.test_stop],
            self.options.seed,
            self.device,
        )

    def _keep_the_best(self, rung: Rung, num_later: int) -> None:
        """Keep the rung's best as survivors, and candidates statistically tied with the last of them."""
        ordered = sorted(self.survivors, key=self._order)
        if ordered:
            ordered_CI = np.stack([self.scores[number][-1][1].contribution_I for number in ordered])
            is_kept_C, self.confidence = find_survivors(
                ordered_CI, rung.num_kept, self.confidence, num_later, self.options.seed
            )
            self.survivors = [number for number, is_kept in zip(ordered, is_kept_C, strict=True) if is_kept]

    def _add_features(self, rung: Rung, *, is_last: bool) -> None:
        """Get the survivors' features of the rung's new items; skip candidates with missing or non-finite features."""
        num_train = len(self.items.train_labels)
        train = range(rung.train_start, rung.train_stop)
        test = range(num_train + rung.test_start, num_train + rung.test_stop)
        gathered = self.source.gather(self.survivors, [*train, *test], is_last=is_last)
        self.skipped |= gathered.failed
        for number, new in gathered.features.items():
            for features, rows in ((self.train_features, new[: len(train)]), (self.test_features, new[len(train) :])):
                features[number] = np.concatenate([features[number], rows]) if number in features else rows
            if not np.isfinite(new).all():
                snapshot = self.tree.candidates[number].snapshot
                self.skipped[number] = (
                    f"snapshot {snapshot}: its features are not finite; its weights may hold NaN or infinity"
                )
        self.survivors = [number for number in self.survivors if number not in self.skipped]

    def _order(self, number: int) -> tuple[int, float, float, str]:
        """Return the sort key of a candidate: most rungs, highest score, smallest loss, then id."""
        rungs = self.scores[number]
        _, score = rungs[-1]
        return (-len(rungs), -score.value, score.loss, self.tree.candidates[number].snapshot)

    def ranking(self) -> tuple[RankedSnapshot, ...]:
        """Return the candidates that were scored and not skipped later, best first.

        Ties with the best are judged at the last rung that both were in, if that used all test items; otherwise the
        rung has decided that the candidate is behind, or did not have to.
        """
        ordered = sorted(self.scores.keys() - self.skipped.keys(), key=self._order)
        by_last_rung: dict[int, list[int]] = defaultdict(list)
        for number in ordered:
            by_last_rung[len(self.scores[number]) - 1].append(number)
        is_tied: dict[int, bool] = {}
        for last, numbers in by_last_rung.items():
            best_I, *others = (self.scores[number][last][1].contribution_I for number in (ordered[0], *numbers))
            if self.scores[numbers[0]][last][0].test_stop == len(self.items.test_labels):
                is_tied |= zip(numbers, tied_with(best_I, np.stack(others), self.options.seed).tolist(), strict=True)
        return tuple(
            RankedSnapshot(
                rank=rank,
                snapshot=self.tree.candidates[number].snapshot,
                name=self.tree.candidates[number].name,
                score=self.scores[number][-1][1].value,
                num_train=self.scores[number][-1][0].train_stop,
                num_test=self.scores[number][-1][0].test_stop,
                tied_with_best=is_tied.get(number, False),
            )
            for rank, number in enumerate(ordered, start=1)
        )
