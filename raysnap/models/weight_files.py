"""Read weights that other tools wrote: safetensors and PyTorch files, into blocks."""

from __future__ import annotations

import pickle
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raysnap.errors import WeightsError
from raysnap.models.blocks import INTEGER_BUFFERS, block_names, split_state_dict
from raysnap.models.foreign_pickles import check_checkpoint
from raysnap.models.tensor_bytes import DTYPES, decode

SAFETENSORS_SUFFIX = ".safetensors"
TORCH_SUFFIXES = (".pth", ".pt", ".bin")
MAX_NAME_CHARACTERS = 500

_WRAPPERS = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")
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


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a `.safetensors` or `.pth` file, under torchvision's names, onto the CPU.

    Wrappers such as `{"state_dict": …}` and the `module.` prefixes of `nn.DataParallel` are removed.

    Raises:
        WeightsError: the file is missing, of another kind, malformed, or contains anything but tensors.
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
        raise WeightsError(f"{path}: expected a file ending in {known}, found {path.suffix or 'no suffix'!r}")
    for wrapper in _WRAPPERS:
        if isinstance(state_dict, Mapping) and isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
            break
    return _strip_prefixes(_check_tensors(state_dict, path))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return decode(np.fromfile(path, dtype=np.uint8).data, str(path))
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
            f"torch.load(weights_only=True) rejects: {reason}"
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
            raise WeightsError(
                f"{path}: expected printable tensor names of at most {MAX_NAME_CHARACTERS} characters, found "
                f"{name[:80]!r}"
            )
        if value.dtype not in DTYPES.values():
            raise WeightsError(f"{path}: {name}: expected numbers of a type that can be stored, found {value.dtype}")
        if value.layout != torch.strided or value.is_meta or value.nbytes > file_bytes:
            raise WeightsError(f"{path}: {name[:80]!r}: expected a dense tensor with its values in the file")
    return {name: value.detach() for name, value in state_dict.items()}


def _strip_prefixes(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state_dict):
            return _strip_prefixes({name.removeprefix(prefix): value for name, value in state_dict.items()})
    return state_dict


def read_blocks(path: Path, architecture: str) -> list[tuple[str, dict[str, Tensor]]]:
    """Read a file of weights into blocks that can be stored as a snapshot of the architecture.

    Raises:
        ArchitectureError: the architecture is unknown or can't be split.
        WeightsError: the file can't be read, doesn't fit the architecture, or contains NaN, infinity or another kind
            of numbers.
    """
    block_names(architecture)
    state_dict = _with_batch_counts(load_state_dict(path))
    blocks = split_state_dict(architecture, state_dict)
    for name, tensor in state_dict.items():
        is_integer_buffer = name.endswith(INTEGER_BUFFERS)
        if not (_is_integer(tensor) if is_integer_buffer else tensor.is_floating_point()):
            kind = "integers" if is_integer_buffer else "floating-point numbers"
            raise WeightsError(f"{path}: {name}: expected {kind}, found {tensor.dtype}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise WeightsError(f"{path}: {name}: expected finite weights, found NaN or infinity")
    return blocks


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _with_batch_counts(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add BatchNorm's batch counts where they are missing, as torch does; files from before PyTorch 0.4.1 lack them."""
    suffix = "running_var"
    counts = {name.removesuffix(suffix) + "num_batches_tracked" for name in state_dict if name.endswith(suffix)}
    return {name: torch.tensor(0) for name in counts} | state_dict
