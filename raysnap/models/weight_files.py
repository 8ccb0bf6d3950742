"""Read weights that other tools wrote into blocks: safetensors and PyTorch files, shards of them, and folders."""

from __future__ import annotations

import contextlib
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from raysnap.errors import ArchitectureError, WeightsError
from raysnap.models.block import Shape, Tensors
from raysnap.models.blocks import INTEGER_BUFFERS, block_names, random_head, shapes_of, split_state_dict
from raysnap.models.checkpoints.adapters import adapter_file, merged
from raysnap.models.checkpoints.distributed import DistributedFolder, DistributedTensor
from raysnap.models.checkpoints.folders import (
    CONFIG_FILE,
    SAFETENSORS_SUFFIX,
    SAVE_WEIGHTS,
    WeightFiles,
    description,
    find_files,
)
from raysnap.models.checkpoints.inert_pickles import InertFile, TensorOutline, items_of, tensors_of
from raysnap.models.checkpoints.recognition import find_architecture
from raysnap.models.families import family
from raysnap.models.foreign_pickles import check_checkpoint
from raysnap.models.tensor_bytes import DTYPES, TensorSpan, decode, read_header, read_metadata
from raysnap.models.weight_sets import (
    WRAPPERS,
    WeightSet,
    choose_set,
    find_sets,
    missing_batch_counts,
    own_names,
)

MAX_NAME_CHARACTERS = 500

_POOLER = "pooler."  # of transformers' models without a head

# What torch.load raises on bytes that are not a checkpoint of tensors; BLE001 forbids catching all exceptions.
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
    zipfile.BadZipFile,
)


Outline: TypeAlias = Mapping[str, Tensor | TensorSpan | TensorOutline | DistributedTensor]
"""Tensors by name, or only their types and shapes."""


@dataclass(frozen=True)
class Weights:
    """An architecture's weights from a file or folder.

    Attributes:
        architecture: its name.
        blocks: the blocks from stem to head.
        entry: which of the file's sets of tensors they are; empty for a plain state dict.
        others: the file's other sets that have the same names, such as averaged weights.
        headless: whether there was no head, so that one of a single class was drawn.
        head_name: what the file calls the head, where that is not the architecture's name for it.
        left_out: the names of tensors in the file that the architecture has no use for.
    """

    architecture: str
    blocks: list[tuple[str, Tensors]]
    entry: str
    others: tuple[str, ...]
    headless: bool = False
    head_name: str | None = None
    left_out: tuple[str, ...] = ()

    @property
    def remark(self) -> str | None:
        """What to know of a file that had more than these weights, or less."""
        remarks = []
        if self.others:
            others = " and ".join(repr(other) for other in self.others)
            remarks.append(
                f"took {self.entry!r} from the file; {others} would fit, too: `raysnap store add --entry` takes it"
            )
        return "; ".join([*remarks, *self.head_remarks]) or None

    @property
    def head_remarks(self) -> list[str]:
        """What to know of the head."""
        remarks = ["it has no head; one of a single class was drawn at random"] if self.headless else []
        if self.head_name:
            remarks.append(f"took the layer {self.head_name!r} for its head, as nothing else was left")
        if self.left_out:
            remarks.append(f"left out {', '.join(self.left_out[:3])}, which only the model without a head has")
        return remarks


@dataclass(frozen=True)
class _Content:
    """What one file holds.

    Attributes:
        entries: the types and shapes of the tensors in each of its entries; the file itself is entry `""`.
        read: returns tensors of one of the entries, of which it is given the names in the file.
        facts: what the file says of itself beside tensors.
    """

    entries: Mapping[str, Outline]
    read: Callable[[str, list[str]], Mapping[str, Tensor]]
    facts: Mapping[str, object] = field(default_factory=dict)


def read_weights(path: Path, architecture: str | None = None, entry: str | None = None) -> Weights:
    """Read a file or folder of weights into blocks that can be stored as a snapshot of the architecture.

    Names, shapes and types are checked before the values are read. Wrappers such as `{"state_dict": …}` and what names
    begin with, such as the `module.` of `nn.DataParallel`, are removed. Nothing but tensors is made of a file: classes
    in it stay names.

    Args:
        path: a file, the index of shards, or a folder that holds one model.
        architecture: found by names and shapes where None.
        entry: which of several sets of weights in the file, as `Weights.entry` calls it; by default the raw ones.

    Raises:
        ArchitectureError: the architecture is unknown or can't be split.
        WeightsError: the file can't be read, doesn't fit the architecture, or contains NaN, infinity or another kind
            of numbers.
    """
    if architecture is not None:
        block_names(architecture)
    files = find_files(path)
    content = _joined(files)
    try:
        if architecture is None:
            config = description(path, CONFIG_FILE)
            architecture = find_architecture(content.facts, config, _shapes(content.entries))
        content, left_out = _with_base_names(architecture, content)
        entries = content.entries
        shapes = _shapes(entries)
        sets, headless = _find_sets(architecture, shapes)
        chosen = choose_set(sets, entry)
        headless_names, headless = headless, headless and not chosen.head
        names = own_names(architecture, chosen, shapes[chosen.entry], headless=headless_names)
        _check_kinds({name: entries[chosen.entry][full] for name, full in names.items()})
        state_dict = _values(content, chosen.entry, names)
        _check_kinds(state_dict)
        state_dict = _with_batch_counts(state_dict) | (random_head(architecture, 1, seed=0) if headless else {})
        blocks = split_state_dict(architecture, state_dict)
    except (WeightsError, ArchitectureError) as error:
        raise type(error)(f"{path}: {error}") from None
    others = tuple(one.label for one in sets if one != chosen)
    return Weights(architecture, blocks, chosen.label, others, headless, chosen.head_name, left_out)


def merge_adapter(folder: Path, architecture: str, base: Mapping[str, Tensor]) -> Weights:
    """Return an architecture's weights with the LoRA adapter in a folder merged into them.

    Raises:
        WeightsError: the adapter can't be read or merged, is of another base, or has values that aren't finite.
    """
    try:
        file = adapter_file(folder)
        content = _content(folder if file is None else file)
        if set(content.entries) != {""}:
            raise WeightsError(f"expected an adapter's named tensors, found entries {', '.join(content.entries)}")
        outline = content.entries[""]
        tensors = _values(content, "", {name: name for name in outline})
        tensors = merged(folder, tensors, base, family.stored_names(architecture))
        _check_kinds({name: tensor for name, tensor in tensors.items() if tensor is not base.get(name)})
        return Weights(architecture, split_state_dict(architecture, tensors), "", ())
    except WeightsError as error:
        raise WeightsError(f"{folder}: {error}") from None


def _shapes(entries: Mapping[str, Outline]) -> dict[str, dict[str, Shape]]:
    return {key: {name: tuple(one.shape) for name, one in outline.items()} for key, outline in entries.items()}


def _with_base_names(architecture: str, content: _Content) -> tuple[_Content, tuple[str, ...]]:
    """Return the tensors of transformers' model without a head under the names of the one with a head.

    What only the former has, its pooler, is left out and named.
    """
    prefix, outline = family.base_prefix(architecture), content.entries.get("", {})
    expected = shapes_of(architecture)
    if not prefix or any(name.startswith(prefix) for name in outline) or set(outline) & expected.keys():
        return content, ()
    kept = [name for name in outline if prefix + name in expected]
    left = tuple(name for name in outline if name not in kept)
    if not kept or not all(name.startswith(_POOLER) for name in left):
        return content, ()

    def read(entry: str, names: list[str]) -> Mapping[str, Tensor]:
        tensors = content.read(entry, [name.removeprefix(prefix) for name in names])
        return {prefix + name: tensor for name, tensor in tensors.items()}

    return _Content({"": {prefix + name: outline[name] for name in kept}}, read, content.facts), left


def _find_sets(architecture: str, shapes: Mapping[str, Mapping[str, Shape]]) -> tuple[list[WeightSet], bool]:
    """Return the sets of the architecture's tensors, and whether they all lack the head."""
    try:
        return find_sets(architecture, shapes), False
    except WeightsError:
        try:
            return find_sets(architecture, shapes, headless=True), True
        except WeightsError:
            pass
        raise


def _joined(files: WeightFiles) -> _Content:
    """Return what the files hold together; shards hold one entry.

    Values are read only where the format leaves no choice.
    """
    contents = [_content(file) for file in files.files]
    if files.listed is None:
        return contents[0]
    where: dict[str, _Content] = {}
    for file, content in zip(files.files, contents, strict=True):
        if set(content.entries) != {""}:
            raise WeightsError(f"{file}: expected a shard of named tensors, found entries {', '.join(content.entries)}")
        twice = next((name for name in content.entries[""] if name in where), None)
        if twice is not None:
            raise WeightsError(f"{file}: expected each tensor in one shard, found {twice!r} in two")
        where |= dict.fromkeys(content.entries[""], content)
    if set(where) != set(files.listed):
        odd = min(set(where) ^ set(files.listed))
        raise WeightsError(f"{files.path}: expected the shards' tensors to be those of the index, found {odd!r} in one")

    def read(entry: str, names: list[str]) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        for content in contents:
            found |= content.read(entry, [name for name in names if where[name] is content])
        return found

    outline = {name: content.entries[""][name] for name, content in where.items()}
    return _Content({"": outline}, read, contents[0].facts)


def _content(path: Path) -> _Content:
    if path.is_dir():
        return _distributed(path)
    if path.suffix == SAFETENSORS_SUFFIX:
        return _safetensors(path)
    try:
        loaded = _read_torch(path, "meta" if zipfile.is_zipfile(path) else "cpu")
    except WeightsError as error:
        content = _inert(path)
        if content is None:
            raise WeightsError(f"{error}{_step(path)}") from None
        return content

    def read(entry: str, names: list[str]) -> Mapping[str, Tensor]:
        tensors = _entries(_read_torch(path, "cpu"), path).get(entry, {})
        return {name: tensors[name].detach() for name in names if name in tensors}

    return _Content(_entries(loaded, path), read, loaded)


def _step(path: Path) -> str:
    """Return what makes weights of a file that can't be read: a program of TorchScript, or a pickle not of torch."""
    if path.suffix == ".pkl":
        return f"; {SAVE_WEIGHTS}"
    with contextlib.suppress(*_UNREADABLE), zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            name = path.name
            return f"; it is a program of TorchScript: torch.save(torch.jit.load({name!r}).state_dict(), 'weights.pth')"
    return ""


def _distributed(path: Path) -> _Content:
    """Return the tensors of a folder that torch.distributed.checkpoint wrote."""
    try:
        folder = DistributedFolder(path)
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{path}: expected a checkpoint of torch.distributed.checkpoint, found {reason}") from None

    def read(entry: str, names: list[str]) -> Mapping[str, Tensor]:
        try:
            return folder.tensors({name: folder.entries[entry][name] for name in names})
        except _UNREADABLE as error:
            raise WeightsError(f"expected a whole checkpoint, found {' '.join(str(error).split())[:200]}") from None

    sound = {key: tensors for key, tensors in folder.entries.items() if not any(map(_name_fault, tensors))}
    if not sound:
        raise WeightsError(f"{path}: expected named tensors, found none")
    return _Content(sound, read)


def _safetensors(path: Path) -> _Content:
    try:
        spans, metadata = read_header(path), read_metadata(path)
    except OSError as error:
        raise WeightsError(f"{path}: can't be read: {error.strerror}") from None
    fault = next(filter(None, map(_name_fault, spans)), None)
    if fault or not spans:
        raise WeightsError(f"{path}: {fault or 'expected named tensors, found nothing in it'}")

    def read(_: str, names: list[str]) -> Mapping[str, Tensor]:
        try:
            tensors = decode(np.fromfile(path, dtype=np.uint8).data, "its bytes")
        except (OSError, MemoryError) as error:
            raise WeightsError(f"can't be read: {error}") from None
        return {name: tensors[name] for name in names if name in tensors}

    return _Content({"": spans}, read, metadata)


def _inert(path: Path) -> _Content | None:
    """Return the tensors of a file with foreign classes; None where there are none, or it would take too much."""
    try:
        file = InertFile(path)
        entries = {
            key: tensors for key, tensors in tensors_of(file.value).items() if not any(map(_name_fault, tensors))
        }
    except _UNREADABLE:
        return None
    if not entries:
        return None

    def read(entry: str, names: list[str]) -> Mapping[str, Tensor]:
        try:
            return file.tensors({name: entries[entry][name] for name in names})
        except _UNREADABLE as error:
            raise WeightsError(f"expected a whole checkpoint, found {' '.join(str(error).split())[:200]}") from None

    facts = {key: value for key, value in items_of(file.value).items() if isinstance(key, str)}
    return _Content(entries, read, facts)


def _values(content: _Content, entry: str, names: Mapping[str, str]) -> Tensors:
    """Return tensors of one of a file's entries; `names` are those in the file by those to return."""
    tensors = content.read(entry, list(names.values()))
    if not all(full in tensors for full in names.values()):
        raise WeightsError("expected a file that stays as it is, found that it changed while it was read")
    return {name: tensors[full] for name, full in names.items()}


def _read_torch(path: Path, device: str) -> Any:
    """Return what the file holds, unpickling nothing but tensors; on the meta device without the tensors' values."""
    check_checkpoint(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location=device, weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"{path}: expected a checkpoint of tensors only (torch.save of a state_dict()), found one that "
            f"torch.load(weights_only=True) rejects: {reason}"
        ) from None


def _entries(loaded: Any, path: Path) -> dict[str, Tensors]:
    """Return each state dict in what a file holds, by its key; what holds nothing else has the key `""`.

    Raises:
        WeightsError: there is none, or one of those that go by the usual names is malformed.
    """
    if not isinstance(loaded, Mapping) or not loaded:
        found = "nothing in it" if isinstance(loaded, Mapping) else type(loaded).__name__
        raise WeightsError(f"{path}: expected a state dict of named tensors, found {found}")
    file_bytes = path.stat().st_size
    nested = {key: value for key, value in loaded.items() if isinstance(key, str) and isinstance(value, Mapping)}
    entries: dict[str, Tensors] = {}
    for key, value in (nested or {"": loaded}).items():
        fault = _fault(value, file_bytes)
        if fault is None:
            entries[key] = dict(value)
        elif key in WRAPPERS:
            raise WeightsError(f"{path}: {fault}")
    if not entries:
        raise WeightsError(f"{path}: {_fault(loaded, file_bytes)}")
    return entries


def _fault(state_dict: Mapping[Any, Any], file_bytes: int) -> str | None:
    """Return what keeps this from being a state dict of tensors in a file of so many bytes; None where nothing does."""
    if not state_dict:
        return "expected named tensors, found nothing in it"
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            return f"expected tensors by name, found {str(name)[:80]!r}: {type(value).__name__}"
        if (fault := _name_fault(name)) is not None:
            return fault
        if value.dtype not in DTYPES.values():
            return f"{name[:80]}: expected numbers of a type that can be stored, found {value.dtype}"
        if value.layout != torch.strided or value.nbytes > file_bytes:
            return f"{name[:80]!r}: expected a dense tensor with its values in the file"
    return None


def _name_fault(name: str) -> str | None:
    if len(name) <= MAX_NAME_CHARACTERS and name.isprintable():
        return None
    return f"expected printable tensor names of at most {MAX_NAME_CHARACTERS} characters, found {name[:80]!r}"


def _check_kinds(tensors: Outline) -> None:
    """Check that weights are finite floating-point numbers, where they are read, and some buffers integers.

    Raises:
        WeightsError: one is of another kind.
    """
    for name, tensor in tensors.items():
        dtype = tensor.dtype
        if name.endswith(INTEGER_BUFFERS) == dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
            kind = "integers" if name.endswith(INTEGER_BUFFERS) else "floating-point numbers"
            raise WeightsError(f"{name}: expected {kind}, found {dtype}")
        if isinstance(tensor, Tensor) and not tensor.is_meta and not bool(torch.isfinite(tensor.float()).all()):
            raise WeightsError(f"{name}: expected finite weights, found NaN or infinity")


def _with_batch_counts(state_dict: Tensors) -> Tensors:
    """Add BatchNorm's batch counts where they are missing, as torch does; files from before PyTorch 0.4.1 lack them."""
    return {name: torch.tensor(0) for name in missing_batch_counts(state_dict)} | state_dict
