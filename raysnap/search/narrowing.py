"""Narrow a store's snapshots to as many as a search may try: by their manifests first, then by what relatives scored.

The first round tries snapshots of all kinds. The second tries those that may be the best, given the scores of their
relatives, against the first round's best. What the others may still be worth is stated as the expected loss of
narrowing. Where few enough snapshots match, all are tried and there is nothing to narrow.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from raysnap.config.search_options import SearchOptions
from raysnap.search.candidates import count_parameters, name_of, read_candidates
from raysnap.search.plan.strata import Body, find_bodies, order_evenly
from raysnap.search.plan.tree import Candidate, find_misfit
from raysnap.search.result import GroupNarrowing, Narrowing, RankedSnapshot
from raysnap.store.index import SnapshotSummary
from raysnap.store.records import RecordTable
from raysnap.store.store import Store

if TYPE_CHECKING:
    from raysnap.search.contest import Contest  # imports torch, which a plan does without
    from raysnap.search.probes.relatives import Relatives

# The part of what may be tried that the second round tries, and the part of this that the first round's best may be.
SECOND_ROUND_SHARE = 4
MIN_FOR_TWO_ROUNDS = 8


class Field:
    """The snapshots that match a question, and those of them that are tried.

    Attributes:
        store: where they are.
        summaries: what the index knows of each, by its id.
        options: those of each round; two rounds share the tolerance.
        bodies: what may be tried, in the order of the first round; empty where all snapshots are.
        candidates: what was tried so far of these, by the bodies' positions.
        rounds: the contests so far, and their rankings.
    """

    def __init__(self, store: Store, options: SearchOptions, summaries: Sequence[SnapshotSummary]):
        """Take note of the snapshots; no manifest is read."""
        self.store = store
        self.options = options
        self.summaries = {summary.id: summary for summary in summaries}
        self._limit = options.max_candidates or len(self.summaries)
        self.bodies: list[Body] = []
        if len(self.summaries) > self._limit:
            found = find_bodies(list(self.summaries.values()))
            static = _largest_base(self.summaries.values())
            self.bodies = sorted(
                (found[position] for position in order_evenly(found)), key=lambda body: static not in body.snapshots
            )
        self.candidates: dict[int, Candidate] = {}
        self.rounds: list[tuple[Contest, tuple[RankedSnapshot, ...]]] = []
        self._num_later = 0
        if len(self.bodies) > self._limit >= MIN_FOR_TWO_ROUNDS:
            self._num_later = self._limit // SECOND_ROUND_SHARE
            self.options = options.model_copy(update={"tolerance": options.tolerance / 2})

    @cached_property
    def records(self) -> RecordTable | None:
        """What came of fine-tunes on other datasets; None where the options leave that out."""
        return self.store.record_table() if self.options.use_records else None

    def first_round(self) -> list[Candidate]:
        """Return the candidates of the first round, by id: all, or some of every kind."""
        if not self.bodies:
            found = read_candidates(self.store, self.summaries.values(), self.options.image_size)
            return sorted(found, key=lambda candidate: candidate.snapshot)
        return self._admit(range(len(self.bodies)), self._limit - self._num_later)

    def record(self, contest: Contest) -> None:
        """Take note of a round's scores."""
        self.rounds.append((contest, contest.ranking()))

    def second_round(self) -> list[Candidate]:
        """Return the candidates of the second round, by id: those that may be the best, and the first round's best.

        There are none where the first round scored nothing, or need not leave anything out.
        """
        _, ranking = self.rounds[0]
        if not self._num_later or not ranking:
            return []
        num_best = max(1, self._num_later // SECOND_ROUND_SHARE)
        best = [line.snapshot for line in ranking if line.rank == 1 or line.within_tolerance][:num_best]
        again = [candidate for candidate in self.candidates.values() if candidate.snapshot in best]
        count = self._num_later - len(again)
        # Twice as many are picked, as some may turn out not to run.
        entrants = self._admit(self._relatives().pick_promising(2 * count, self.options.seed), count)
        return sorted([*entrants, *again], key=lambda candidate: candidate.snapshot) if entrants else []

    def _admit(self, positions: Sequence[int], count: int) -> list[Candidate]:
        """Read candidates until `count` can run; return these, and those that a contest will skip, by id."""
        admitted: dict[int, Candidate] = {}
        position_of = {self.bodies[position].snapshots[0]: position for position in positions}
        summaries = [self.summaries[snapshot] for snapshot in position_of]
        for candidate in read_candidates(self.store, summaries, self.options.image_size):
            admitted[position_of[candidate.snapshot]] = candidate
            count -= find_misfit(candidate) is None
            if count == 0:
                break
        self.candidates |= admitted
        return sorted(admitted.values(), key=lambda candidate: candidate.snapshot)

    def _relatives(self) -> Relatives:
        """Return what the scores so far say of all bodies."""
        from raysnap.search.probes.relatives import Relatives  # scipy, which few searches need, takes 0.4 s to import

        seen = _differences(self.rounds)
        tried = [position for position, candidate in self.candidates.items() if candidate.snapshot in seen]
        score_K, variance_K = np.array([seen[self.candidates[position].snapshot] for position in tried]).T
        return Relatives(
            np.array([body.traits for body in self.bodies]),
            np.array([body.promise for body in self.bodies]),
            np.array(tried),
            score_K,
            variance_K,
        )

    def rank(self) -> tuple[RankedSnapshot, ...]:
        """Return the last round's winner, then all others by how many items they were scored on, and by their score.

        Snapshots that differ in their heads only follow one another. Who is as good as the winner is known of the
        rounds that the winner was in and won.
        """
        *_, last = rankings = [ranking for _, ranking in self.rounds]
        if not self.bodies or not last:
            return last
        lines: dict[str, RankedSnapshot] = {}
        for ranking in reversed(rankings):
            for line in ranking:
                is_other = ranking[0].snapshot != last[0].snapshot  # that it was compared with
                other = replace(line, tied_with_best=False, within_tolerance=False) if is_other else line
                lines.setdefault(line.snapshot, other)
        winner, *others = lines.values()
        others.sort(key=lambda line: (-line.num_train, -line.num_test, -line.score))
        body_of = {candidate.snapshot: self.bodies[position] for position, candidate in self.candidates.items()}
        twins = [(line, twin) for line in (winner, *others) for twin in sorted(body_of[line.snapshot].snapshots)]
        return tuple(
            replace(line, rank=rank, snapshot=twin, name=name_of(self.summaries[twin]))
            for rank, (line, twin) in enumerate(twins, start=1)
        )

    def narrowing(self) -> Narrowing | None:
        """Return what was left out and what it may be worth; None where all snapshots were tried."""
        if not self.bodies:
            return None
        _, ranking = self.rounds[-1]
        expected_loss = None
        if ranking:
            named = next(n for n, candidate in self.candidates.items() if candidate.snapshot == ranking[0].snapshot)
            expected_loss = self._relatives().expected_loss(named, self.options.seed)
        groups = self._groups()
        return Narrowing(
            num_candidates=len(self.summaries),
            num_tried=len(self.candidates),
            num_left_out=sum(group.num_left_out for group in groups),
            expected_loss=expected_loss,
            groups=groups,
        )

    def _groups(self) -> tuple[GroupNarrowing, ...]:
        """Return how many snapshots of each kind were left out, the most first; the base doesn't tell kinds apart."""
        counts: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0])
        for position, body in enumerate(self.bodies):
            count = counts[body.traits[:-1]]
            count[0] += len(body.snapshots)
            count[1] += 0 if position in self.candidates else len(body.snapshots)
        groups = []
        for (kind, root, dataset, depth), (num_candidates, num_left_out) in counts.items():
            named = name_of(self.summaries[root]) if root in self.summaries else root[:12]
            groups.append(GroupNarrowing(kind, named, dataset or None, int(depth), num_candidates, num_left_out))
        return tuple(sorted(groups, key=lambda group: (-group.num_left_out, -group.num_candidates)))


def _largest_base(summaries: Iterable[SnapshotSummary]) -> str:
    """Return the id of the no-search baseline, the largest base snapshot, which is always tried."""

    def preference(summary: SnapshotSummary) -> tuple[bool, int, str]:
        return summary.base is not None, -count_parameters(summary.architecture), summary.id

    return min(summaries, key=preference).id


def _differences(rounds: Sequence[tuple[Contest, Sequence[RankedSnapshot]]]) -> dict[str, tuple[float, float]]:
    """Return each scored snapshot's score less that of the first round's winner, and the variance of its noise.

    A snapshot is compared with its own round's winner on the items of the last rung that it was in. The first round's
    winner, which is in all rounds, links them.
    """
    link = rounds[0][1][0].snapshot
    found: dict[str, tuple[float, float]] = {}
    for contest, ranking in rounds:
        ids = {number: candidate.snapshot for number, candidate in enumerate(contest.tree.candidates)}
        scores = {
            ids[n]: [score for _, score in rungs] for n, rungs in contest.scores.items() if n not in contest.skipped
        }
        if not scores:
            continue
        best = scores[ranking[0].snapshot]
        lead = {snapshot: own[-1].value - best[len(own) - 1].value for snapshot, own in scores.items()}
        noise = [
            _noise(np.stack([own[rung].contribution_I for own in scores.values() if len(own) > rung]))
            for rung in range(len(best))
        ]
        found |= {
            snapshot: (lead[snapshot] - lead.get(link, 0.0), noise[len(own) - 1]) for snapshot, own in scores.items()
        }
    return found


def _noise(contribution_CI: np.ndarray) -> float:
    """Return the variance of a score's noise, the part of it that candidates scored on the same items don't share."""
    num_candidates, num_items = contribution_CI.shape
    residual_CI = contribution_CI - contribution_CI.mean(axis=1, keepdims=True)
    if num_candidates > 1:
        residual_CI = residual_CI - residual_CI.mean(axis=0)
    degrees = max(1, num_candidates - 1) * max(1, num_items - 1)
    return float((residual_CI**2).sum() / degrees / num_items)
