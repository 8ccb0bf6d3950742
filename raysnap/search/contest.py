"""Rank candidates rung by rung: get features, score them, drop those that cost least, stop when more would not pay."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch

from raysnap.config.choices import TRANSFERABILITY, Proxy, StopReason
from raysnap.config.search_options import SearchOptions
from raysnap.search.engine.items import ProbeItems
from raysnap.search.engine.source import FeatureSource
from raysnap.search.plan.rungs import NUM_FOLDS, NUM_FOLDS_BEFORE, Rung, drops_candidates
from raysnap.search.plan.tree import PrefixTree, find_misfit
from raysnap.search.plan.workload import models_of_first, whole_models
from raysnap.search.probes.confidence import interval_of, tied_with
from raysnap.search.probes.cross_validation import assign_folds, cross_validate
from raysnap.search.probes.expected_loss import Beliefs, Evidence, estimate_luck, soften, step_variance
from raysnap.search.probes.proxies import ProbeSet, score_candidates
from raysnap.search.probes.score import Array, Score
from raysnap.search.result import Gain, RankedSnapshot, RungReport

ACCURACIES: tuple[Proxy, ...] = ("linear", "sgd_linear", "knn")
# So many times the forward passes made so far cost as much as the tolerance.
PASSES_PER_TOLERANCE = 2
Z_95 = 1.96  # standard errors on both sides of a mean


@dataclass
class Contest:
    """The state between rungs: the remaining candidates, the features so far, and every score.

    Attributes:
        device: where features are scored.
        survivors: the candidates that enter the next rung; after a rung, best first.
        scores: each candidate's rungs so far, with its score in each.
        behind: how far each candidate's expected true score is behind the leader's, at its last rung.
        skipped: why a candidate could not be scored.
        reports: what each rung did.
        expected_loss: how much better than the leader the best candidate is expected to be on new items, those dropped
            so far included; None where the method drops candidates without weighing that.
        stopped: why no further rung is needed; None while one is.
    """

    tree: PrefixTree
    source: FeatureSource
    items: ProbeItems
    options: SearchOptions
    device: torch.device
    survivors: list[int] = field(default_factory=list)
    train_features: dict[int, np.ndarray] = field(default_factory=dict)
    test_features: dict[int, np.ndarray] = field(default_factory=dict)
    scores: dict[int, list[tuple[Rung, Score]]] = field(default_factory=dict)
    behind: dict[int, float] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)
    reports: list[RungReport] = field(default_factory=list)
    expected_loss: float | None = None
    stopped: StopReason | None = None
    _evidence: Evidence = field(init=False)
    _unit: float | None = None
    _num_forwards: float = 0.0

    def __post_init__(self) -> None:
        reasons = {number: find_misfit(candidate) for number, candidate in enumerate(self.tree.candidates)}
        self.skipped = {number: reason for number, reason in reasons.items() if reason is not None}
        self.survivors = [number for number in reasons if number not in self.skipped]
        self._evidence = Evidence(len(self.tree.candidates))

    def run_rung(self, rung: Rung, following: Rung | None) -> None:
        """Get the rung's new features, score every survivor on all its features, and keep the best.

        Args:
            following: the next rung; None after the last.
        """
        work, started_s, num_candidates = self.source.work, time.perf_counter(), len(self.survivors)
        before = (work.block_item_passes, work.flops, work.block_bytes_read)
        if self.survivors:
            self._add_features(rung, is_last=following is None)
        if following is None or not self.survivors:
            self.stopped = "all_items"
        if self.survivors:
            with work.timed("proxy"):
                self._decide(rung, following)
        self.source.keep(() if self.stopped else self.survivors)
        for number in self.train_features.keys() - set(self.survivors):
            del self.train_features[number], self.test_features[number]
        after = (work.block_item_passes, work.flops, work.block_bytes_read)
        passes, flops, num_bytes = (new - old for new, old in zip(after, before, strict=True))
        self.reports.append(
            RungReport(
                num_train=rung.train_stop,
                num_test=rung.test_stop,
                num_candidates=num_candidates,
                num_kept=len(self.survivors),
                expected_loss=self.expected_loss,
                block_item_passes=passes,
                flops=flops,
                block_bytes_read=num_bytes,
                total_s=time.perf_counter() - started_s,
            )
        )

    def _decide(self, rung: Rung, following: Rung | None) -> None:
        """Score the survivors, and decide which of them stay and whether another rung is needed."""
        method, proxy, seed = self.options.method, self.options.proxy, self.options.seed
        probes = self._probe_set(rung)
        if method == "nested":
            scores = cross_validate(proxy, probes, NUM_FOLDS, seed, self.device)
        else:
            scores = score_candidates(proxy, *probes, seed, self.device)
        for number, score in zip(self.survivors, scores, strict=True):
            self.scores.setdefault(number, []).append((rung, score))
        errors = self._probe_errors(probes, scores) if method == "nested" else (0.0, 1.0)
        self.survivors.sort(key=self._order)
        if method == "nested":
            self._drop(self._weigh(*errors), following)
        elif drops_candidates(method):
            if not self.stopped:
                self.survivors = self.survivors[: rung.num_kept]
        else:
            self._weigh(*errors)

    def _probe_set(self, rung: Rung) -> ProbeSet:
        return ProbeSet(
            [self.train_features[number] for number in self.survivors],
            self.items.train_labels[: rung.train_stop],
            [self.test_features[number] for number in self.survivors],
            self.items.test_labels[: rung.test_stop],
        )

    def _probe_errors(self, probes: ProbeSet, scores: list[Score]) -> tuple[float, float]:
        """Return the variance by which scores will drift as probes train on more, and how much luck they have."""
        if self.options.proxy in TRANSFERABILITY:
            return 0.0, 1.0
        before = cross_validate(self.options.proxy, probes, NUM_FOLDS_BEFORE, self.options.seed, self.device)
        before_CI, now_CI = (_evidence_of(some) for some in (before, scores))
        # A probe's error by the luck of its train items falls as 1 / their number.
        num_train, num_before, num_now = (
            len(self.items.train_labels),
            len(probes.train_labels_N) * (1 - 1 / NUM_FOLDS_BEFORE),
            len(probes.train_labels_N) * (1 - 1 / NUM_FOLDS),
        )
        share = (1 / num_now - 1 / num_train) / (1 / num_before - 1 / num_now)
        half_N = assign_folds(probes.train_labels_N, NUM_FOLDS_BEFORE)
        return share * step_variance(now_CI - before_CI), estimate_luck(before_CI[:, : len(half_N)], half_N)

    def _weigh(self, drift_variance: float, luck: float) -> Beliefs:
        """Return what the survivors' scores, which are in order, say about their true scores.

        Survivors with the same features are one to it.
        """
        distinct = [numbers[0] for numbers in self._alike().values()]
        evidence_CI = _evidence_of([self.scores[number][-1][1] for number in distinct])
        if self._unit is None:
            spread = float(np.ptp(evidence_CI.mean(axis=1)))
            self._unit = 1.0 if self.options.proxy in ACCURACIES else spread or 1.0
        num_final = len(self.items.train_labels) + len(self.items.test_labels)
        self._evidence.add(distinct, evidence_CI / self._unit, drift_variance / self._unit**2, luck)
        beliefs = self._evidence.weigh(distinct, num_final, self.options.seed)
        self.expected_loss = beliefs.loss_of(0)
        behind_C = (beliefs.expected_C[0] - beliefs.expected_C).tolist()
        for behind, alike in zip(behind_C, self._alike().values(), strict=True):
            self.behind |= dict.fromkeys(alike, behind)
        return beliefs

    def _alike(self) -> dict[Hashable, list[int]]:
        """Return the survivors by what their features depend on, in their order."""
        alike: dict[Hashable, list[int]] = defaultdict(list)
        for number in self.survivors:
            candidate = self.tree.candidates[number]
            alike[candidate.architecture, candidate.preprocessing, candidate.blocks].append(number)
        return alike

    def _drop(self, beliefs: Beliefs, following: Rung | None) -> None:
        """Keep as many survivors as cost the least, by what is lost without the others and what the next rung takes.

        To be more certain among the few that are left is often cheap. There is no next rung where it costs the least
        to keep the first alone.
        """
        tolerance, loss = self.options.tolerance, self.expected_loss
        if following is None or loss is None:
            return
        groups = list(self._alike().values())
        passes_C = following.num_items * np.array(models_of_first(self.tree, [group[0] for group in groups]))
        passes_C[0] = 0.0
        price_C = tolerance * passes_C / (PASSES_PER_TOLERANCE * self._num_forwards)
        num_kept = 1 + int(np.argmin(beliefs.losses_of_keeping() + price_C))
        if num_kept == 1 and tolerance:
            self.stopped = "tolerance" if loss < tolerance else "no_gain"
        else:
            self.survivors = list(chain.from_iterable(groups[:num_kept]))

    def _add_features(self, rung: Rung, *, is_last: bool) -> None:
        """Get the survivors' features of the rung's new items; skip candidates with missing or non-finite features."""
        num_train = len(self.items.train_labels)
        train = range(rung.train_start, rung.train_stop)
        test = range(num_train + rung.test_start, num_train + rung.test_stop)
        self._num_forwards += (len(train) + len(test)) * whole_models(self.tree, self.survivors)
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
            is_last = last == len(self.scores[ordered[0]]) - 1
            if is_last or self.scores[numbers[0]][last][0].test_stop == len(self.items.test_labels):
                is_tied |= zip(numbers, tied_with(best_I, np.stack(others), self.options.seed).tolist(), strict=True)
        return tuple(
            self._line(number, rank, is_tied.get(number, False)) for rank, number in enumerate(ordered, start=1)
        )

    def gain(self, snapshot: str, base: str) -> Gain | None:
        """Return by how much a snapshot scores above another one, at the last rung that both were in."""
        numbers = {candidate.snapshot: number for number, candidate in enumerate(self.tree.candidates)}
        found = [self.scores.get(numbers.get(one, -1), []) for one in (snapshot, base)]
        last = min(map(len, found))
        if self.options.proxy not in ACCURACIES or snapshot == base or not last:
            return None
        ours_I, theirs_I = (scores[last - 1][1].contribution_I for scores in found)
        mean = float((ours_I - theirs_I).mean())
        margin = Z_95 * float((ours_I - theirs_I).std()) / math.sqrt(len(ours_I))
        return Gain(mean, mean - margin, mean + margin, len(ours_I))

    def _line(self, number: int, rank: int, is_tied: bool) -> RankedSnapshot:
        candidate = self.tree.candidates[number]
        rung, score = self.scores[number][-1]
        low, high = interval_of(score.contribution_I, is_share=self.options.proxy in ACCURACIES)
        return RankedSnapshot(
            rank=rank,
            snapshot=candidate.snapshot,
            name=candidate.name,
            score=score.value,
            num_train=rung.train_stop,
            num_test=rung.test_stop,
            tied_with_best=is_tied,
            within_tolerance=self.behind.get(number, math.inf) <= self.options.tolerance,
            low=low,
            high=high,
            num_scored=len(score.contribution_I),
            proxy_rank=rank,
        )


def _evidence_of(scores: Sequence[Score]) -> Array:
    """Return what each item says of each candidate, `[C, I]`."""
    exact_CI, softened_CI = (
        np.stack([getattr(score, name) for score in scores]) for name in ("contribution_I", "softened_I")
    )
    return soften(exact_CI, softened_CI)
