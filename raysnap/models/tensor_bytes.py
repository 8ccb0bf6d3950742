"""Tensors as bytes and back: the canonical safetensors form of a block, and a strict parser.

The canonical form is raysnap's own promise, not a library's: every later version must compute today's digests.
The header is parsed here too: the safetensors library accepts more than is safe, such as a duplicate key.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

from raysnap.canonical_json import parse_json
from raysnap.errors import WeightsError

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 20_000
MAX_DIMENSIONS = 64
MAX_DIMENSION = 2**48

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorSpan:
    """Where one tensor's bytes are: `start` and `stop` count from the file's first byte."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> list[memoryview]:
    """Encode `tensors` as chunks of bytes whose concatenation is a safetensors file; tensors are not copied.

    Without metadata this is the canonical form: tensors ordered by descending element width, then by name; the header
    is JSON without blanks, keys in the order dtype, shape, data_offsets, padded with spaces to a multiple of 8 bytes.

    Raises:
        WeightsError: there is no tensor, or one that safetensors can't represent.
    """
    if not tensors:
        raise WeightsError("a block without tensors can't be stored; expected at least one tensor")
    plain = {name: _plain(name, tensor) for name, tensor in tensors.items()}
    order = sorted(plain, key=lambda name: (-plain[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    chunks: list[memoryview] = []
    offset = 0
    for name in order:
        tensor = plain[name]
        stop = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, stop]}
        if stop > offset:
            chunks.append(tensor.reshape(-1).view(torch.uint8).numpy().data)
        offset = stop
    try:
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise WeightsError("tensor names: expected Unicode text, found a lone surrogate") from None
    text += b" " * (-len(text) % 8)
    return [memoryview(len(text).to_bytes(8, "little") + text), *chunks]


def _plain(name: str, tensor: Tensor) -> Tensor:
    """Return the tensor in contiguous CPU memory, without a copy if it is there already."""
    if not isinstance(name, str) or name == "__metadata__":
        raise WeightsError(f"tensor name: expected text other than '__metadata__', found {name!r}")
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
        found = type(tensor).__name__ if not isinstance(tensor, Tensor) else f"{tensor.layout} on {tensor.device}"
        raise WeightsError(f"{name}: expected a dense tensor with values, found {found}")
    if tensor.dtype not in _NAMES:
        raise WeightsError(f"{name}: dtype {tensor.dtype} can't be stored; expected one of {', '.join(DTYPES)}")
    return tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()


def num_bytes(chunks: list[memoryview]) -> int:
    """Return the total number of bytes of the chunks."""
    return sum(chunk.nbytes for chunk in chunks)


def digest(chunks: list[memoryview]) -> str:
    """Return the BLAKE3 of the chunks' concatenation, in hexadecimal."""
    hasher = blake3()
    for chunk in chunks:
        hasher.update(chunk)
    return hasher.hexdigest()


def canonical_block_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the bytes of the block's file."""
    return b"".join(encode(tensors))


def block_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the block's digest, which is also its file's name in every store."""
    return digest(encode(tensors))


def decode(buffer: memoryview, where: str, device: torch.device | None = None) -> dict[str, Tensor]:
    """Return the tensors in a safetensors file's bytes, as views of that memory.

    Args:
        buffer: the whole file, in memory that is writable and not used elsewhere.
        where: the file, for messages.
        device: if given, tensors are views of a single copy there; to autograd, a change of one changes all.

    Raises:
        WeightsError: the bytes are not a valid safetensors file.
    """
    spans = parse_header(buffer, where)
    memory: np.ndarray | Tensor = np.frombuffer(buffer, dtype=np.uint8)
    if device is not None:
        memory = torch.from_numpy(memory).to(device)
    return {name: _view(memory, span, f"{where}: {name}") for name, span in spans.items()}


def pinned_memory(num_bytes: int) -> memoryview:
    """Allocate page-locked memory, which a GPU can copy from directly; torch caches it for the next call when freed."""
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True).numpy().data


def _view(memory: np.ndarray | Tensor, span: TensorSpan, where: str) -> Tensor:
    piece = torch.as_tensor(memory[span.start : span.stop])
    if span.start == span.stop:
        return torch.empty(span.shape, dtype=span.dtype, device=piece.device)
    if piece.data_ptr() % span.dtype.itemsize:
        piece = piece.clone()
    if span.dtype == torch.bool and bool((piece > 1).any()):
        raise WeightsError(f"{where}: expected booleans of 0 and 1, found other bytes")
    return piece.view(span.dtype).reshape(span.shape)


def read_header(path: Path) -> dict[str, TensorSpan]:
    """Return where each tensor is in a safetensors file of which nothing else is read.

    Raises:
        WeightsError: the header is not valid.
        OSError: the file can't be read.
    """
    head, num_bytes = _read_head(path)
    return parse_header(memoryview(head), str(path), num_bytes)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts that a safetensors file has beside its tensors.

    Raises:
        WeightsError: the header is not valid.
        OSError: the file can't be read.
    """
    head, _ = _read_head(path)
    try:
        metadata = parse_json(head[8:]).get("__metadata__", {})
    except (ValueError, RecursionError, AttributeError):
        raise WeightsError(f"{path}: not a valid safetensors file: its header is no JSON object") from None
    return {str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}


def _read_head(path: Path) -> tuple[bytes, int]:
    """Read the length and the header of a safetensors file; return them, and the size of the whole file."""
    with path.open("rb") as file:
        head = file.read(8)
        head += file.read(min(int.from_bytes(head, "little"), MAX_HEADER_BYTES))
        return head, os.fstat(file.fileno()).st_size


def parse_header(buffer: memoryview, where: str, file_bytes: int | None = None) -> dict[str, TensorSpan]:
    """Return where each tensor is in a safetensors file; the spans tile its data without hole or overlap.

    Args:
        buffer: the whole file, or its beginning up to the data.
        where: the file, for messages.
        file_bytes: the length of the file, where the buffer is not all of it.

    Raises:
        WeightsError: the header is not valid.
    """
    file_bytes = len(buffer) if file_bytes is None else file_bytes
    try:
        header, data_start = _read_header(buffer, file_bytes)
        spans = {name: _span(name, value, data_start, file_bytes) for name, value in header.items()}
        _check_tiling(spans, data_start, file_bytes)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise WeightsError(f"{where}: not a valid safetensors file: {reason}") from None
    return spans


def _read_header(buffer: memoryview, file_bytes: int) -> tuple[dict[str, object], int]:
    if len(buffer) < 8:
        raise ValueError(f"expected at least 8 bytes, found {len(buffer)}")
    length = int.from_bytes(buffer[:8], "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, len(buffer) - 8):
        raise ValueError(
            f"its header claims {length} bytes in a file of {file_bytes} bytes (at most {MAX_HEADER_BYTES})"
        )
    text = bytes(buffer[8 : 8 + length])
    if text[:1] != b"{" or text.rstrip(b" ")[-1:] != b"}":
        raise ValueError("expected a header that is a JSON object padded with spaces")
    header = parse_json(text)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("expected __metadata__ to contain text only")
    if len(header) > MAX_TENSORS:
        raise ValueError(f"expected at most {MAX_TENSORS} tensors, found {len(header)}")
    return header, 8 + length


def _span(name: str, value: object, data_start: int, file_bytes: int) -> TensorSpan:
    name.encode("utf-8")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name[:80]!r}: expected dtype, shape and data_offsets")
    dtype_name, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype_name, str) or dtype_name not in DTYPES:
        raise ValueError(f"{name[:80]!r}: unknown dtype {str(dtype_name)[:40]!r}")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS or any(size > MAX_DIMENSION for size in shape):
        raise ValueError(f"{name[:80]!r}: impossible shape {str(shape)[:80]}")
    if not _are_counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= file_bytes - data_start:
        raise ValueError(f"{name[:80]!r}: data_offsets {str(offsets)[:80]} are not within the file")
    dtype = DTYPES[dtype_name]
    expected = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != expected:
        raise ValueError(f"{name[:80]!r}: {dtype_name} {shape} takes {expected} bytes, found {offsets[1] - offsets[0]}")
    return TensorSpan(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_tiling(spans: dict[str, TensorSpan], data_start: int, file_bytes: int) -> None:
    end = data_start
    for name, span in sorted(spans.items(), key=lambda item: (item[1].start, item[1].stop)):
        if span.start != end:
            raise ValueError(f"{name[:80]!r}: {'overlaps another tensor' if span.start < end else 'follows a hole'}")
        end = span.stop
    if end != file_bytes:
        raise ValueError(f"{file_bytes - end} bytes at its end belong to no tensor")
