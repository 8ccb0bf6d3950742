"""Weights in and out of the store: files that other tools wrote, and plain torchvision state dicts for them to read.

Nothing here unpickles anything but tensors: `.pth` goes through `torch.load(weights_only=True)`, safetensors through
the strict parser of `objects`.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from raysnap.atomic import replacing
from raysnap.errors import StoreError, WeightsError
from raysnap.models import tensor_bytes as objects
from raysnap.models.blocks import num_classes_of, split_state_dict
from raysnap.models.weight_files import SAFETENSORS_SUFFIX, TORCH_SUFFIXES, read_blocks
from raysnap.store.catalog import ABSENT
from raysnap.store.manifest import DatasetRecord, Manifest, Preprocessing, check_ref_name, snapshot_id
from raysnap.store.model_card import CARD_MARK, CARD_NAME, model_card
from raysnap.store.store import SnapshotWrite, Store


@dataclass(frozen=True)
class Export:
    """The files that an export wrote."""

    weights_path: Path
    card_path: Path
    num_bytes: int


def add_file(
    store: Store,
    path: Path,
    architecture: str,
    name: str | None = None,
    base: str | None = None,
    dataset: DatasetRecord | None = None,
    preprocessing: Preprocessing | None = None,
    metrics: Mapping[str, float] | None = None,
) -> SnapshotWrite:
    """The snapshot of the weights in a file, in the store; any number of classes is fine.

    Given its `base`, its retrain index is what the blocks say: how many below the head differ from the base's.

    Raises:
        WeightsError: the file can't be read, doesn't fit the architecture or holds NaN or infinity.
        StoreError: `name` stands for another snapshot already, or the store can't be written.
    """
    if name is not None:
        check_ref_name(name)
    blocks = read_blocks(path, architecture)
    retrain_index = None if base is None else _retrain_index(store.manifest(base), architecture, blocks)
    if name is not None and (current := store.refs().get(name)) is not None:
        found = snapshot_id(architecture, [(block_name, objects.block_digest(block)) for block_name, block in blocks])
        if current != found:
            raise StoreError(f"{store.path}: the name {name!r} stands for snapshot {current[:12]}; choose another name")
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
    """How many blocks below the head came after the first that is not the base's; None where none is the base's."""
    if base.architecture != architecture:
        raise WeightsError(f"base {base.id[:12]}: expected the architecture {architecture}, found {base.architecture}")
    pairs = zip(base.blocks, blocks, strict=True)
    num_equal = len(list(itertools.takewhile(lambda pair: pair[0].digest == objects.block_digest(pair[1][1]), pairs)))
    return max(0, len(blocks) - 1 - num_equal) if num_equal else None


def snapshot_state_dict(store: Store, manifest: Manifest) -> dict[str, Tensor]:
    """The snapshot's tensors in torchvision's order: what `load_state_dict(strict=True)` takes.

    Raises:
        BlockDamaged: a block is missing or damaged.
        StoreDamaged: the blocks are sound, but not those of the architecture.
    """
    tensors: dict[str, Tensor] = {}
    for entry in manifest.blocks:
        tensors |= store.read_block(entry.digest)
    return {
        name: value for _, block in split_state_dict(manifest.architecture, tensors) for name, value in block.items()
    }


def export_snapshot(store: Store, name_or_id: str, to: Path) -> Export:
    """Writes a snapshot as a plain torchvision state dict, `.safetensors` or `.pth`, and a model card beside it.

    Files appear whole or not at all. A README.md that is not one of our cards is left alone; the card is then called
    after the weights.

    Raises:
        SnapshotNotFound: there is no such snapshot.
        BlockDamaged: a block is missing or damaged; nothing is written.
        WeightsError: `to` has another suffix or can't be written.
    """
    if to.suffix != SAFETENSORS_SUFFIX and to.suffix not in TORCH_SUFFIXES:
        raise WeightsError(f"{to}: expected a file called .safetensors or .pth, found {to.suffix or 'no suffix'!r}")
    manifest = store.manifest(name_or_id)
    state_dict = snapshot_state_dict(store, manifest)
    card_path = _card_path(to)
    with _writing(to) as file:
        if to.suffix == SAFETENSORS_SUFFIX:
            for chunk in objects.encode(state_dict, metadata={"format": "pt", "architecture": manifest.architecture}):
                file.write(chunk)
        else:
            torch.save(state_dict, file)
    with _writing(card_path) as file:
        file.write(model_card(manifest, store.lineage(manifest), store.names_of(manifest.id), to.name).encode())
    return Export(to, card_path, to.stat().st_size)


def _card_path(to: Path) -> Path:
    path = to.with_name(CARD_NAME)
    try:
        is_ours = CARD_MARK in path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        is_ours = True
    except OSError as error:
        raise WeightsError(f"{path}: can't be read: {error.strerror}") from None
    return path if is_ours else to.with_name(f"{to.name}.md")


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path`, whose folder is made if needed; what goes wrong is a WeightsError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            yield file
    except OSError as error:
        raise WeightsError(f"{path}: can't be written: {error.strerror or error}") from error
