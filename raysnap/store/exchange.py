"""Weights in and out of the store: files that other tools wrote, and plain torchvision state dicts for them to read.

Nothing here unpickles anything but tensors: `.pth` goes through `torch.load(weights_only=True)`, safetensors through
the strict parser of `objects`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import secrets
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from raysnap.errors import StoreError, WeightsError
from raysnap.models import tensor_bytes as objects
from raysnap.models.blocks import block_names, num_classes_of, split_state_dict
from raysnap.models.foreign_pickles import check_checkpoint
from raysnap.store.catalog import ABSENT
from raysnap.store.manifest import DatasetRecord, Manifest, Preprocessing, check_ref_name, snapshot_id
from raysnap.store.store import SnapshotWrite, Store

SAFETENSORS_SUFFIX = ".safetensors"
TORCH_SUFFIXES = (".pth", ".pt", ".bin")
CARD_NAME = "README.md"
CARD_MARK = "<!-- model card written by raysnap -->"

MAX_NAME_CHARACTERS = 500

_WRAPPERS = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")
# The buffers of torchvision's models that hold whole numbers.
_WHOLE = ("num_batches_tracked", "relative_position_index")
# What torch.load raises on bytes that are no checkpoint of tensors; BLE001 forbids naming them all at once.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    ArithmeticError,
    ImportError,
    MemoryError,
    OSError,
    struct.error,
)


@dataclass(frozen=True)
class Export:
    """The files that an export wrote."""

    weights_path: Path
    card_path: Path
    num_bytes: int


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict in a `.safetensors` or `.pth` file, under torchvision's names, on the CPU.

    Wrappers such as `{"state_dict": …}` and the `module.` prefixes of `nn.DataParallel` are taken off.

    Raises:
        WeightsError: the file is missing, of another kind, malformed, or holds anything but tensors.
    """
    if not path.is_file():
        raise WeightsError(
            f"{path}: expected a file of weights, found {'a folder' if path.is_dir() else 'nothing there'}"
        )
    if path.suffix == SAFETENSORS_SUFFIX:
        state_dict: Any = _read_safetensors(path)
    elif path.suffix in TORCH_SUFFIXES:
        state_dict = _read_torch(path)
    else:
        known = ", ".join((SAFETENSORS_SUFFIX, *TORCH_SUFFIXES))
        raise WeightsError(f"{path}: expected a file called {known}, found {path.suffix or 'no suffix'!r}")
    for wrapper in _WRAPPERS:
        if isinstance(state_dict, Mapping) and isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
            break
    return _strip_prefixes(_check_tensors(state_dict, path))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return objects.decode(memoryview(np.fromfile(path, dtype=np.uint8)), str(path))
    except (OSError, MemoryError) as error:
        raise WeightsError(f"{path}: can't be read: {error}") from None


def _read_torch(path: Path) -> Any:
    check_checkpoint(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"{path}: expected a checkpoint of tensors only (torch.save of a state_dict()), found one that "
            f"torch.load(weights_only=True) refuses: {reason}"
        ) from None


def _check_tensors(state_dict: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(state_dict, Mapping) or not state_dict:
        found = "nothing in it" if isinstance(state_dict, Mapping) else type(state_dict).__name__
        raise WeightsError(f"{path}: expected a state dict of named tensors, found {found}")
    file_bytes = path.stat().st_size
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(f"{path}: expected tensors by name, found {str(name)[:80]!r}: {type(value).__name__}")
        if len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
            raise WeightsError(f"{path}: expected names of tensors in one short line, found {name[:80]!r}")
        if value.layout != torch.strided or value.is_meta or value.nbytes > file_bytes:
            raise WeightsError(f"{path}: {name[:80]!r}: expected a dense tensor with its values in the file")
    return {name: value.detach() for name, value in state_dict.items()}


def _strip_prefixes(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state_dict):
            return _strip_prefixes({name.removeprefix(prefix): value for name, value in state_dict.items()})
    return state_dict


def read_blocks(path: Path, architecture: str) -> list[tuple[str, dict[str, Tensor]]]:
    """The tensors in a file of weights by block, fit to be a snapshot of the architecture.

    Raises:
        ArchitectureError: the architecture is unknown or can't be split.
        WeightsError: the file can't be read, doesn't fit the architecture or holds NaN, infinity or another kind of
            numbers.
    """
    block_names(architecture)
    state_dict = _with_batch_counts(load_state_dict(path))
    blocks = split_state_dict(architecture, state_dict)
    for name, tensor in state_dict.items():
        if not (_is_whole(tensor) if name.endswith(_WHOLE) else tensor.is_floating_point()):
            kind = "whole" if name.endswith(_WHOLE) else "floating-point"
            raise WeightsError(f"{path}: {name}: expected {kind} numbers, found {tensor.dtype}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise WeightsError(f"{path}: {name}: expected finite weights, found NaN or infinity")
    return blocks


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


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


def _with_batch_counts(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with BatchNorm's batch counts; files from before PyTorch 0.4.1 lack them, torch adds zeros too."""
    suffix = "running_var"
    counts = {name.removesuffix(suffix) + "num_batches_tracked" for name in state_dict if name.endswith(suffix)}
    return {name: torch.tensor(0) for name in counts} | state_dict


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
    with _replacing(to) as file:
        if to.suffix == SAFETENSORS_SUFFIX:
            for chunk in objects.encode(state_dict, metadata={"format": "pt", "architecture": manifest.architecture}):
                file.write(chunk)
        else:
            torch.save(state_dict, file)
    with _replacing(card_path) as file:
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
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when it was written to its end without an error."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise WeightsError(f"{path}: can't be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def model_card(manifest: Manifest, lineage: list[Manifest], names: list[str], file_name: str) -> str:
    """The README of an exported snapshot: what it is, where it comes from, how good it is, how to load it."""
    dataset = manifest.dataset
    shape = manifest.preprocessing
    lines = [
        CARD_MARK,
        f"# {_code(names[0] if names else manifest.id[:12])}",
        "",
        "| | |",
        "| --- | --- |",
        f"| architecture | {_code(manifest.architecture)} (torchvision), {manifest.num_classes} classes |",
        f"| snapshot | {_code(manifest.id)} |",
        f"| trained on | {_code(dataset.name) if dataset else 'unknown'} |",
        f"| retrained blocks | {_or_unknown(manifest.retrain_index)} below the head, and the head |",
        f"| created | {manifest.created}, raysnap {_code(manifest.raysnap_version)} |",
        f"| input | RGB, shorter side {shape.resize_size} px ({shape.interpolation}), crop {shape.image_size} px, "
        f"mean {list(shape.mean)}, std {list(shape.std)} |",
        "",
        "## Lineage",
        "",
        *([f"1. fine-tuned from {_describe(base)}" for base in lineage] or ["No base is recorded."]),
        "",
        "## Metrics",
        "",
        *([f"- {_code(key)}: {value:.6g}" for key, value in sorted(manifest.metrics.items())] or ["None recorded."]),
        "",
        "## Training",
        "",
        *([f"- {_code(key)}: {_code(value)}" for key, value in sorted(manifest.train.items())] or ["Not recorded."]),
        "",
        "## How to load it",
        "",
        "```python",
        *_loading_code(manifest, file_name),
        "```",
    ]
    if dataset and dataset.classes:
        lines += ["", "## Classes", "", *[f"{index}. {_code(one)}" for index, one in enumerate(dataset.classes)]]
    return "\n".join(lines) + "\n"


def _loading_code(manifest: Manifest, file_name: str) -> list[str]:
    if file_name.endswith(SAFETENSORS_SUFFIX):
        reader, load = "from safetensors.torch import load_file", f"load_file({file_name!r})"
    else:
        reader, load = "import torch", f"torch.load({file_name!r}, weights_only=True)"
    return [
        reader,
        "from torchvision.models import get_model",
        "",
        f"model = get_model({manifest.architecture!r}, weights=None, num_classes={manifest.num_classes})",
        f"model.load_state_dict({load}, strict=True)",
        "model.eval()",
    ]


def _describe(manifest: Manifest) -> str:
    on = f", trained on {_code(manifest.dataset.name)}" if manifest.dataset else ""
    return f"{_code(manifest.architecture)} {_code(manifest.id[:12])}{on}"


def _or_unknown(value: int | None) -> str:
    return "unknown" if value is None else str(value)


def _code(value: object) -> str:
    """Any text as Markdown code on one line, so that no name can become markup."""
    text = "".join(character if character.isprintable() else " " for character in str(value)).replace("`", "'")
    return f"`{text.replace('|', '/')}`"
