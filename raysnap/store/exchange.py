"""Weights in and out of the store: files that other tools wrote, and plain torchvision state dicts for them to read.

Nothing but tensors is ever unpickled: `.pth` files go through `torch.load(weights_only=True)`, safetensors files
through the strict parser of `tensor_bytes`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from raysnap.atomic import plain_disk_errors, replacing
from raysnap.config.folders import local_path
from raysnap.errors import StoreError, WeightsError
from raysnap.models.blocks import num_classes_of
from raysnap.models.tensor_bytes import block_digest, encode
from raysnap.models.weight_files import SAFETENSORS_SUFFIX, TORCH_SUFFIXES, Weights, read_weights
from raysnap.store.catalog import ABSENT
from raysnap.store.manifest import DatasetRecord, Manifest, Preprocessing, check_ref_name, snapshot_id
from raysnap.store.model_card import CARD_NAME, is_card_of, model_card
from raysnap.store.store import SnapshotWrite, Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Export:
    """The files that an export wrote."""

    weights_path: Path
    card_path: Path
    num_bytes: int


def import_snapshot(
    store: Store,
    path: Path | str,
    architecture: str,
    name: str | None = None,
    base: str | None = None,
    dataset: DatasetRecord | None = None,
    preprocessing: Preprocessing | None = None,
    metrics: Mapping[str, float] | None = None,
    entry: str | None = None,
) -> SnapshotWrite:
    """Store the weights in a file as a snapshot; they may have any number of classes.

    >>> store = raysnap.Store.open("store")
    >>> path = raysnap.export_snapshot(store, "base", "copied/base.pth").weights_path
    >>> copy = raysnap.Store.open("copy", create=True)
    >>> raysnap.import_snapshot(copy, path, "mobilenet_v3_small", name="base").new_blocks
    14

    Given its `base`, its retrain index follows from the blocks: how many below the head differ from the base's.

    Of a file that has several sets of weights, such as averaged ones beside the raw ones, `entry` says which; by
    default it is the raw ones.

    Raises:
        WeightsError: the file can't be read, doesn't fit the architecture or contains NaN or infinity.
        StoreError: `name` already refers to another snapshot, or the store can't be written.
    """
    weights = read_weights(local_path(path), architecture, entry)
    if weights.remark and entry is None:
        logger.warning("%s: %s", path, weights.remark)
    return add_weights(store, weights, architecture, name, base, dataset, preprocessing, metrics)


def add_weights(
    store: Store,
    weights: Weights,
    architecture: str,
    name: str | None = None,
    base: str | None = None,
    dataset: DatasetRecord | None = None,
    preprocessing: Preprocessing | None = None,
    metrics: Mapping[str, float] | None = None,
) -> SnapshotWrite:
    """Store weights that were read from a file, as `import_snapshot` does."""
    if name is not None:
        check_ref_name(name)
    blocks = weights.blocks
    retrain_index = None if base is None else _retrain_index(store.manifest(base), architecture, blocks)
    if name is not None and (current := store.refs().get(name)) is not None:
        found = snapshot_id(architecture, [(block_name, block_digest(block)) for block_name, block in blocks])
        if current != found:
            raise StoreError(
                f"{store.path}: the name {name!r} already refers to snapshot {current[:12]}; choose another name"
            )
    written = store.put_snapshot(
        architecture=architecture,
        blocks=blocks,
        num_classes=num_classes_of(blocks[-1][1]),
        base=base,
        retrain_index=retrain_index,
        dataset=dataset,
        preprocessing=preprocessing,
        metrics=metrics,
    )
    if name is not None and store.refs().get(name) != written.manifest.id:
        store.set_ref(name, written.manifest.id, expected=ABSENT)
    return written


def _retrain_index(base: Manifest, architecture: str, blocks: list[tuple[str, dict[str, Tensor]]]) -> int | None:
    """Return the number of blocks below the head from the first that differs from the base's; None if all differ."""
    if base.architecture != architecture:
        raise WeightsError(f"base {base.id[:12]}: expected the architecture {architecture}, found {base.architecture}")
    pairs = zip(base.blocks, blocks, strict=True)
    num_equal = len(list(itertools.takewhile(lambda pair: pair[0].digest == block_digest(pair[1][1]), pairs)))
    return max(0, len(blocks) - 1 - num_equal) if num_equal else None


def export_snapshot(store: Store, name_or_id: str, to: Path | str, *, overwrite: bool = False) -> Export:
    """Write a snapshot as a plain torchvision state dict, `.safetensors` or `.pth`, and a model card beside it.

    >>> export = raysnap.export_snapshot(raysnap.Store.open("store"), "base", "exported/base.safetensors")
    >>> str(export.weights_path), str(export.card_path)
    ('exported/base.safetensors', 'exported/README.md')

    Files appear whole or not at all. The card is README.md; if that exists and is not the card of a file of this name,
    it is left alone and the card is named after the weights.

    Args:
        overwrite: whether to replace a file of weights, or a text of the card's name, that is there already.

    Raises:
        SnapshotNotFound: there is no such snapshot.
        BlockDamaged: a block is missing or damaged; nothing is written.
        WeightsError: `to` has another suffix, is there already or can't be written.
    """
    to = local_path(to)
    if to.suffix != SAFETENSORS_SUFFIX and to.suffix not in TORCH_SUFFIXES:
        raise WeightsError(f"{to}: expected a file called .safetensors or .pth, found {to.suffix or 'no suffix'!r}")
    manifest = store.manifest(name_or_id)
    card_path = _card_path(to)
    for path in (to, card_path):
        if not overwrite and path.exists() and not _is_card_of(path, to.name):
            raise WeightsError(
                f"{path}: expected no such file yet, found one; choose another name, or replace it with --overwrite"
            )
    state_dict = store.read_state_dict(manifest.id)
    with _writing(to) as file:
        if to.suffix == SAFETENSORS_SUFFIX:
            for chunk in encode(state_dict, metadata={"format": "pt", "architecture": manifest.architecture}):
                file.write(chunk)
        else:
            with plain_disk_errors():
                torch.save(state_dict, file)
    with _writing(card_path) as file:
        file.write(model_card(manifest, store.lineage(manifest), store.names_of(manifest.id), to.name).encode())
    return Export(to, card_path, to.stat().st_size)


def _card_path(to: Path) -> Path:
    """Return where the card of an export goes: not where there is a text that isn't the card of a file of this name."""
    path = to.with_name(CARD_NAME)
    return path if not path.exists() or _is_card_of(path, to.name) else to.with_name(f"{to.name}.md")


def _is_card_of(path: Path, file_name: str) -> bool:
    try:
        return path.suffix == ".md" and is_card_of(path.read_text(encoding="utf-8", errors="replace"), file_name)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise WeightsError(f"{path}: can't be read: {error.strerror}") from None


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path`, creating its folder if needed; raise WeightsError if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            yield file
    except OSError as error:
        raise WeightsError(f"{path}: can't be written: {error.strerror or error}") from error
