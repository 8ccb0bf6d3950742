"""What training keeps of each block: the bytes that autograd saves in a forward for the backward pass.

They are counted on the meta device, where nothing is computed, in float32 and with each storage once: what a block's
input shares with the output before it counts for the block that saves it first. Parameters and buffers don't count.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

BATCH_SIZES = (2, 4)  # BatchNorm needs two items; from the difference follows what one more item takes


def kept_bytes(blocks: Sequence[nn.Module], make_items: Callable[[int], Tensor]) -> list[int]:
    """Return for each block on the meta device how many bytes per item a training step keeps of it, in float32.

    Args:
        make_items: gives the input of so many items, on the meta device.
    """
    trained = [copy.deepcopy(block).train().requires_grad_() for block in blocks]
    fewer, more = (_count(trained, make_items(num_items)) for num_items in BATCH_SIZES)
    return [(after - before) // (BATCH_SIZES[1] - BATCH_SIZES[0]) for before, after in zip(fewer, more, strict=True)]


def _count(blocks: Sequence[nn.Module], x: Tensor) -> list[int]:
    """Return the bytes that a forward of these items keeps of each block."""
    own = {_storage(tensor) for block in blocks for tensor in (*block.parameters(), *block.buffers())}
    kept: dict[int, Tensor] = {}  # which holds on to the storages, whose addresses would be used again
    num_bytes = []

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            kept.setdefault(_storage(tensor), tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), _fused_attention():
        for block in blocks:
            before = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
            x = block(x)
            num_bytes.append(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) - before)
    return num_bytes


def _storage(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Make attention on the meta device keep what the fused kernels of CPUs and GPUs keep.

    torch runs it there step by step, which keeps every weight of one token for another. A function mode would not see
    it inside `nn.MultiheadAttention`; real tensors of other threads go to torch's own.
    """
    own = nn.functional.scaled_dot_product_attention

    def attention(queries: Tensor, keys: Tensor, values: Tensor, *rest: Any, **more: Any) -> Any:
        if not queries.is_meta:
            return own(queries, keys, values, *rest, **more)
        return _Attention.apply(queries, keys, values)

    nn.functional.scaled_dot_product_attention = attention  # type: ignore[assignment]  # one that takes the same
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = own


class _Attention(torch.autograd.Function):
    """The shapes of fused attention: it keeps its inputs, its output and a number per query."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        output = torch.empty_like(queries)
        ctx.save_for_backward(queries, keys, values, output, queries.new_empty(queries.shape[:-1]))
        return output
