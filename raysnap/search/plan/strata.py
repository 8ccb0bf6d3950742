"""Order snapshots so that every beginning of the order covers their kinds evenly, by what a listing says of them.

Snapshots that differ in their heads only have equal features: they are one body, which a search runs once for all. Of
bodies the manifests say where they come from (their traits) and how well they, and what was fine-tuned from them, did
on their own datasets (their promise).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from raysnap.store.index import SnapshotSummary


class Traits(NamedTuple):
    """What kind a body is of; the first trait tells the most about how alike two bodies are.

    Attributes:
        input: its architecture, and the edge of its images in pixels.
        root: id of the snapshot that its line of fine-tunes begins with.
        dataset: the name of the dataset that it was trained on; empty where that is unknown.
        depth: how many quarters of its blocks were retrained, rounded up; 0 where none was.
        base: id of the snapshot that it was fine-tuned from, its own where there is none.
    """

    input: str
    root: str
    dataset: str
    depth: str
    base: str


@dataclass(frozen=True)
class Body:
    """Snapshots that turn equal images into equal features, as they differ in their heads only.

    Attributes:
        snapshots: their ids, the oldest snapshot first; its traits are the body's.
        promise: accuracies of these snapshots and of those fine-tuned from them, each in standard deviations above the
            mean of its dataset; their mean with one average snapshot added, 0 where nothing is known.
    """

    snapshots: tuple[str, ...]
    traits: Traits
    promise: float


def find_bodies(summaries: Sequence[SnapshotSummary]) -> list[Body]:
    """Return the bodies of these snapshots, which are listed the oldest first."""
    members: dict[str, list[int]] = defaultdict(list)
    for number, summary in enumerate(summaries):
        members[summary.body].append(number)
    body_of = {summary.id: summary.body for summary in summaries}
    base_of = {summary.id: summary.base for summary in summaries}
    evidence: dict[str, list[float]] = defaultdict(list)
    for summary, advance in zip(summaries, _advances(summaries), strict=True):
        if advance is not None:
            for body in {summary.body, body_of.get(summary.base or "", summary.body)}:
                evidence[body].append(advance)
    bodies = []
    for body, numbers in members.items():
        oldest, known = summaries[numbers[0]], evidence[body]
        traits = Traits(
            input=f"{oldest.architecture} at {oldest.image_size} px",
            root=_root_of(oldest.id, base_of),
            dataset=oldest.dataset or "",
            depth=str(math.ceil(4 * (oldest.retrain_index or 0) / max(1, oldest.num_blocks - 2))),
            base=oldest.base or oldest.id,
        )
        snapshots = tuple(summaries[number].id for number in numbers)
        bodies.append(Body(snapshots, traits, math.fsum(known) / (len(known) + 1)))
    return bodies


def _advances(summaries: Sequence[SnapshotSummary]) -> list[float | None]:
    """Return how far each accuracy is above the mean of its dataset, in standard deviations within datasets."""
    accuracies: dict[str | None, list[float]] = defaultdict(list)
    for summary in summaries:
        if summary.accuracy is not None:
            accuracies[summary.dataset].append(summary.accuracy)
    means = {dataset: float(np.mean(found)) for dataset, found in accuracies.items()}
    offsets = [accuracy - means[dataset] for dataset, found in accuracies.items() for accuracy in found]
    spread = float(np.sqrt(np.mean(np.square(offsets)))) if offsets else 0.0
    return [
        None if summary.accuracy is None else (summary.accuracy - means[summary.dataset]) / spread if spread else 0.0
        for summary in summaries
    ]


def _root_of(snapshot: str, base_of: dict[str, str | None]) -> str:
    """Return where a snapshot's line begins, as far as it is known."""
    seen: set[str] = set()
    while snapshot not in seen:
        seen.add(snapshot)
        snapshot = base_of.get(snapshot) or snapshot
    return snapshot


def order_evenly(bodies: Sequence[Body]) -> list[int]:
    """Return the positions of the bodies so that kinds take turns: by the first trait, within it by the second, and on.

    Kinds of a single body are one kind together. Of kinds that take turns the one with most bodies comes first; of one
    kind, the body with the most promise.
    """
    return _order(bodies, range(len(bodies)), 0)


def _order(bodies: Sequence[Body], numbers: Sequence[int], level: int) -> list[int]:
    if level == len(Traits._fields) or len(numbers) == 1:
        return sorted(numbers, key=lambda number: (-bodies[number].promise, bodies[number].snapshots[0]))
    kinds: dict[str, list[int]] = defaultdict(list)
    for number in numbers:
        kinds[bodies[number].traits[level]].append(number)
    lone = [kind.pop() for kind in kinds.values() if len(kind) == 1]

    def standing(kind: list[int]) -> tuple[int, float, str]:
        first = bodies[kind[0]]
        return -len(kind), -first.promise, first.snapshots[0]

    queues = sorted((_order(bodies, kind, level + 1) for kind in (*kinds.values(), lone) if kind), key=standing)
    turns = [(turn, place, number) for place, queue in enumerate(queues) for turn, number in enumerate(queue)]
    return [number for _, _, number in sorted(turns)]
