"""Measure how long each kind of block takes on this machine, with zeros as weights and ones as items."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from raysnap.models.block_facts import block_shapes
from raysnap.models.blocks import block_skeleton
from raysnap.models.families.family import item_shape
from raysnap.models.numerics import Numerics
from raysnap.search.engine.folding import build_inference_block
from raysnap.search.plan.costs import BlockSpeed, Kind
from raysnap.search.plan.walk import usual_batch_items

NUM_TIMED = 3


def measure_kinds(kinds: Iterable[Kind], numerics: Numerics, limit_s: float | None = None) -> dict[Kind, BlockSpeed]:
    """Measure how long each kind of block takes on a batch of one item and on a usual batch, in one stream.

    Blocks of equal shapes, FLOPs and bytes, as most of a transformer's are, are measured once.

    Args:
        kinds: the most important first.
        limit_s: begin no further measurement after so many seconds, and measure each size of batch once; None measures
            all of them, as the best of some runs.
    """
    started_s = time.perf_counter()
    speeds: dict[Kind, BlockSpeed] = {}
    known: dict[tuple[object, ...], BlockSpeed] = {}
    for architecture, image_size, index in kinds:
        shapes = block_shapes(architecture, image_size)
        input_shape = shapes[index - 1].output_shape if index else item_shape(architecture, image_size)
        shape = shapes[index]
        facts = (architecture, input_shape, shape.output_shape, shape.flops, shape.num_parameter_bytes)
        if facts not in known:
            if known and limit_s is not None and time.perf_counter() - started_s > limit_s:
                continue
            batch_items = usual_batch_items(architecture, image_size, numerics.device.type)
            num_timed = NUM_TIMED if limit_s is None else 1
            known[facts] = _measure(architecture, image_size, index, (batch_items, *input_shape), numerics, num_timed)
        speeds[architecture, image_size, index] = known[facts]
    return speeds


def mean_speed(speeds: Sequence[BlockSpeed]) -> BlockSpeed:
    """Return the mean of a kind's speeds, each measured on another worker."""
    num = len(speeds)
    return BlockSpeed(sum(speed.call_s for speed in speeds) / num, sum(speed.item_s for speed in speeds) / num)


@torch.inference_mode()
def _measure(
    architecture: str, image_size: int, index: int, input_shape: tuple[int, ...], numerics: Numerics, num_timed: int
) -> BlockSpeed:
    """Measure a block as it runs in a search: on a CPU in one thread, as each runs its own batch there."""
    tensors = {
        name: torch.zeros(tensor.shape, dtype=tensor.dtype)
        for name, tensor in block_skeleton(architecture, index).tensors().items()
    }
    block = build_inference_block(architecture, image_size, index, tensors, numerics)
    is_tokens = index == 0 and len(input_shape) == 2
    inputs = torch.ones(input_shape, dtype=torch.int64 if is_tokens else numerics.dtype, device=numerics.device)
    if inputs.dim() == 4:
        inputs = numerics.lay_out_images(inputs)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(max(1, threads_before // numerics.num_streams))
    try:
        batch_s = _best_s(block, inputs, num_timed)
        single_s = min(batch_s, _best_s(block, inputs[:1], num_timed))
    finally:
        torch.set_num_threads(threads_before)
    num_more = len(inputs) - 1
    if not num_more:
        return BlockSpeed(0.0, batch_s)
    item_s = (batch_s - single_s) / num_more
    return BlockSpeed(max(0.0, single_s - item_s), item_s)


def _best_s(block: nn.Module, inputs: Tensor, num_timed: int) -> float:
    """Return the seconds of the best of some runs after a first one: of this thread's CPU, or until a GPU is done."""
    clock = time.perf_counter if inputs.is_cuda else time.thread_time  # other work on the CPU doesn't count
    times_s = []
    for _ in range(1 + num_timed):
        started_s = clock()
        block(inputs)
        if inputs.is_cuda:
            torch.cuda.synchronize(inputs.device)
        times_s.append(clock() - started_s)
    return min(times_s[1:])
