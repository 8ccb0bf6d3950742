"""Find the candidates of a question in a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raysnap.config.search_options import SearchOptions
from raysnap.datasets.dataset import find_dataset, open_dataset
from raysnap.errors import UsageError
from raysnap.models.block_shape import HEAD
from raysnap.search.plan.tree import Candidate
from raysnap.search.result import RankedSnapshot
from raysnap.store.manifest import Manifest, Preprocessing
from raysnap.store.store import Store


def check_question(store_dir: Path, data: str, options: SearchOptions) -> None:
    """Check that there is a store with candidates, and a dataset; write nothing.

    Raises:
        RaysnapError: one of them is missing or damaged.
    """
    find_candidates(Store.open(store_dir), options.where, options.image_size)
    if find_dataset(data, options.data_dir) is not None:
        open_dataset(data, options.data_dir, options.shapes)


def pick_static_baseline(candidates: Sequence[Candidate], ranking: Sequence[RankedSnapshot]) -> RankedSnapshot | None:
    """Return the ranking's line of the no-search baseline: the largest pretrained model.

    That is, of the ranked snapshots without a base (of all, where each has one), the one with the most bytes of weights
    below the head; of several, the first by id.
    """
    by_id = {candidate.snapshot: candidate for candidate in candidates}

    def preference(entry: RankedSnapshot) -> tuple[bool, int, str]:
        candidate = by_id[entry.snapshot]
        return not candidate.is_base, -sum(block.num_bytes for block in candidate.blocks), entry.snapshot

    return min(ranking, key=preference, default=None)


def find_candidates(store: Store, where: str | None, image_size: int | None) -> list[Candidate]:
    """Find the snapshots that a search ranks, in the order of their ids.

    Raises:
        UsageError: the store has none, or none that matches `where`.
    """
    manifests = store.manifests(where)
    if not manifests:
        wanted = f" that match --where {where!r}" if where else ""
        raise UsageError(
            f"{store.path}: expected at least one snapshot to rank, found none{wanted}; add some with `raysnap "
            "generate` or `raysnap store add`"
        )
    names = {snapshot: name for name, snapshot in sorted(store.refs().items(), reverse=True)}
    return [
        Candidate(
            snapshot=manifest.id,
            name=names.get(manifest.id, manifest.id[:12]),
            architecture=manifest.architecture,
            preprocessing=_preprocessing(manifest, image_size),
            blocks=tuple(block for block in manifest.blocks if block.name != HEAD),
            is_base=manifest.base is None,
        )
        for manifest in sorted(manifests, key=lambda manifest: manifest.id)
    ]


def _preprocessing(manifest: Manifest, image_size: int | None) -> Preprocessing:
    """Return the snapshot's own preprocessing, scaled to another edge where one is asked for."""
    own = manifest.preprocessing
    if image_size is None or image_size == own.image_size:
        return own
    resize_size = round(own.resize_size * image_size / own.image_size)
    return own.model_copy(update={"image_size": image_size, "resize_size": resize_size})
