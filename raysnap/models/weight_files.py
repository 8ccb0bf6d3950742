"""Read weights that other tools wrote: safetensors and PyTorch files, into blocks."""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from raysnap.errors import WeightsError
from raysnap.models.blocks import INTEGER_BUFFERS, Tensors, block_names, split_state_dict
from raysnap.models.foreign_pickles import check_checkpoint
from raysnap.models.tensor_bytes import DTYPES, TensorSpan, decode, read_header
from raysnap.models.weight_sets import WRAPPERS, choose_set, find_sets, missing_batch_counts, own_names

SAFETENSORS_SUFFIX = ".safetensors"
TORCH_SUFFIXES = (".pth", ".pt", ".bin")
MAX_NAME_CHARACTERS = 500

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
)


Outline: TypeAlias = Mapping[str, Tensor | TensorSpan]
"""Tensors by name, or only their types and shapes."""


@dataclass(frozen=True)
class Weights:
    """An architecture's weights from a file.

    Attributes:
        blocks: the blocks from stem to head.
        entry: which of the file's sets of tensors they are; empty for a plain state dict.
        others: the file's other sets that have the same names, such as averaged weights.
    """

    blocks: list[tuple[str, Tensors]]
    entry: str
    others: tuple[str, ...]

    @property
    def remark(self) -> str | None:
        """What to know of a file that had more than these weights."""
        if not self.others:
            return None
        others = " and ".join(repr(other) for other in self.others)
        return f"took {self.entry!r} from the file; {others} would fit, too: `raysnap store add --entry` takes it"


def read_weights(path: Path, architecture: str, entry: str | None = None) -> Weights:
    """Read a file of weights into blocks that can be stored as a snapshot of the architecture.

    Names, shapes and types are checked before the values are read. Wrappers such as `{"state_dict": …}` and what names
    begin with, such as the `module.` of `nn.DataParallel`, are removed.

    Args:
        entry: which of several sets of weights in the file, as `Weights.entry` calls it; by default the raw ones.

    Raises:
        ArchitectureError: the architecture is unknown or can't be split.
        WeightsError: the file can't be read, doesn't fit the architecture, or contains NaN, infinity or another kind
            of numbers.
    """
    block_names(architecture)
    _check_name(path)
    entries = _outlines(path)
    shapes = {key: {name: tuple(one.shape) for name, one in outline.items()} for key, outline in entries.items()}
    try:
        sets = find_sets(architecture, shapes)
        chosen = choose_set(sets, entry)
        names = own_names(architecture, chosen, shapes[chosen.entry])
        _check_kinds({name: entries[chosen.entry][full] for name, full in names.items()})
        state_dict = _values(path, chosen.entry, names)
        _check_kinds(state_dict)
        blocks = split_state_dict(architecture, _with_batch_counts(state_dict))
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    return Weights(blocks, chosen.label, tuple(one.label for one in sets if one != chosen))


def _check_name(path: Path) -> None:
    if not path.is_file():
        raise WeightsError(
            f"{path}: expected a file of weights, found {'a folder' if path.is_dir() else 'nothing there'}"
        )
    if path.suffix not in (SAFETENSORS_SUFFIX, *TORCH_SUFFIXES):
        known = ", ".join((SAFETENSORS_SUFFIX, *TORCH_SUFFIXES))
        raise WeightsError(f"{path}: expected a file ending in {known}, found {path.suffix or 'no suffix'!r}")


def _outlines(path: Path) -> Mapping[str, Outline]:
    """Return the types and shapes of the tensors in each of the file's entries; the file itself is entry `""`.

    Values are read only where the format leaves no choice.
    """
    if path.suffix != SAFETENSORS_SUFFIX:
        return _entries(_read_torch(path, "meta" if zipfile.is_zipfile(path) else "cpu"), path)
    try:
        spans = read_header(path)
    except OSError as error:
        raise WeightsError(f"{path}: can't be read: {error.strerror}") from None
    fault = next(filter(None, map(_name_fault, spans)), None)
    if fault or not spans:
        raise WeightsError(f"{path}: {fault or 'expected named tensors, found nothing in it'}")
    return {"": spans}


def _values(path: Path, entry: str, names: Mapping[str, str]) -> Tensors:
    """Return tensors of one of the file's entries; `names` are those in the file by those to return."""
    if path.suffix == SAFETENSORS_SUFFIX:
        try:
            tensors = decode(np.fromfile(path, dtype=np.uint8).data, "its bytes")
        except (OSError, MemoryError) as error:
            raise WeightsError(f"can't be read: {error}") from None
    else:
        tensors = _entries(_read_torch(path, "cpu"), path).get(entry, {})
    if not names.items() <= {name: full for name, full in names.items() if full in tensors}.items():
        raise WeightsError("expected a file that stays as it is, found that it changed while it was read")
    return {name: tensors[full].detach() for name, full in names.items()}


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
