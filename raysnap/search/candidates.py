"""Find the candidates of a question in a store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from raysnap.config.folders import StorePath
from raysnap.config.parts import ShapesConfig
from raysnap.config.search_options import SearchOptions
from raysnap.datasets.dataset import Dataset, find_dataset, open_dataset
from raysnap.errors import ArchitectureError, UsageError
from raysnap.humanize import given_first, plural
from raysnap.models.block_facts import num_body_parameters, sees_texts
from raysnap.models.block_shape import HEAD
from raysnap.search.plan.tree import Candidate, find_misfit
from raysnap.search.result import InputGroup, RankedSnapshot
from raysnap.store.index import SnapshotSummary
from raysnap.store.store import Store


def check_question(store_dir: StorePath, data: str, options: SearchOptions) -> None:
    """Check that there is a store with candidates, and a dataset; write nothing.

    Raises:
        RaysnapError: one of them is missing or damaged.
    """
    find_summaries(Store.open(store_dir), options.where)
    if find_dataset(data, options.data_dir, options.shapes) is not None:
        open_dataset(data, options.data_dir, options.shapes)


def check_names(
    store_dir: StorePath, data: str, data_dir: Path, shapes: ShapesConfig | None = None, where: str | None = None
) -> None:
    """Check that there is a store with snapshots to rank, and a dataset; read no more than the store's index.

    Raises:
        RaysnapError: one of them is missing or damaged.
    """
    find_summaries(Store.open(store_dir), where)
    find_dataset(data, data_dir, shapes)


def pick_static_baseline(candidates: Sequence[Candidate], ranking: Sequence[RankedSnapshot]) -> RankedSnapshot | None:
    """Return the ranking's line of the no-search baseline: the largest base snapshot.

    That is, of the ranked snapshots without a base (of all, where each has one), the one with the most parameters below
    the head; of several, the first by id.
    """
    by_id = {candidate.snapshot: candidate for candidate in candidates}

    def preference(entry: RankedSnapshot) -> tuple[bool, int, str]:
        candidate = by_id[entry.snapshot]
        return not candidate.is_base, -count_parameters(candidate.architecture), entry.snapshot

    return min((entry for entry in ranking if entry.snapshot in by_id), key=preference, default=None)


def count_parameters(architecture: str) -> int:
    """Return how many parameters an architecture has below the head; 0 for one that is unknown here."""
    try:
        return num_body_parameters(architecture)
    except ArchitectureError:
        return 0


def group_inputs(candidates: Collection[Candidate]) -> tuple[InputGroup, ...]:
    """Return in which ways candidates see their items, the most common first."""
    counts = Counter(candidate.preprocessing for candidate in candidates)
    told = ("resize_size", "resize_mode", "mean", "std", "interpolation")
    return tuple(
        InputGroup(
            image_size=one.image_size,
            num_candidates=num_candidates,
            text=one.text,
            **{name: getattr(one, name, None) for name in told},
        )
        for one, num_candidates in sorted(counts.items(), key=lambda item: (-item[1], item[0].image_size))
    )


def find_even_image_size(candidates: Collection[Candidate]) -> int | None:
    """Return the image size with which candidates that see images differently would all see them in the same way.

    It is the most common size of theirs that every architecture takes; None where there is none, or no need.
    """
    if len(groups := group_inputs(candidates)) < 2:
        return None
    for image_size in dict.fromkeys(group.image_size for group in groups):
        scaled = [replace(one, preprocessing=one.preprocessing.sized(image_size)) for one in candidates]
        if len({one.preprocessing for one in scaled}) == 1 and not any(map(find_misfit, scaled)):
            return image_size
    return None


def find_candidates(store: Store, where: str | None, image_size: int | None) -> list[Candidate]:
    """Find all snapshots that a search may rank, in the order of their ids.

    Raises:
        UsageError: the store has none, or none that matches `where`.
    """
    found = read_candidates(store, find_summaries(store, where), image_size)
    return sorted(found, key=lambda candidate: candidate.snapshot)


def find_summaries(store: Store, where: str | None) -> list[SnapshotSummary]:
    """Return what the index knows of the snapshots that a search may rank, the oldest first; no manifest is read.

    Raises:
        UsageError: the store has none, or none that matches `where`.
    """
    summaries = store.summaries(where)
    if not summaries:
        wanted = f" that match --where {where!r}" if where else ""
        raise UsageError(
            f"{store.path}: expected at least one snapshot to rank, found none{wanted}; add some with `raysnap "
            "generate` or `raysnap store add`"
        )
    return summaries


def that_see(dataset: Dataset, summaries: Sequence[SnapshotSummary]) -> list[SnapshotSummary]:
    """Return those of the snapshots that see items such as the dataset's, images or texts.

    Raises:
        UsageError: none does.
    """
    seeing = [one for one in summaries if sees_texts(one.architecture) == (dataset.kind == "texts")]
    if not seeing:
        other = "images" if dataset.kind == "texts" else "texts"
        raise UsageError(
            f"dataset {dataset.root}: expected snapshots that see {dataset.kind} as the dataset has, found "
            f"{plural(len(summaries), 'snapshot')} that see {other}"
        )
    return seeing


def read_candidates(store: Store, summaries: Iterable[SnapshotSummary], image_size: int | None) -> Iterator[Candidate]:
    """Read the manifests of these snapshots, one at a time; damaged ones are logged and left out."""
    by_id = {summary.id: summary for summary in summaries}
    for manifest in store.manifests_of(by_id):
        own = manifest.preprocessing
        yield Candidate(
            snapshot=manifest.id,
            name=name_of(by_id[manifest.id]),
            architecture=manifest.architecture,
            preprocessing=own if image_size is None else own.sized(image_size),
            blocks=tuple(block for block in manifest.blocks if block.name != HEAD),
            is_base=manifest.base is None,
        )


def name_of(summary: SnapshotSummary) -> str:
    """Return the name that people know a snapshot by: its first, or the beginning of its id."""
    return given_first(summary.names, summary.trial)[0] if summary.names else summary.id[:12]
