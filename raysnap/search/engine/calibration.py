"""Measure how long each kind of block takes per item on this machine, with zeros as weights and as items."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

from raysnap.models.block_facts import block_shapes
from raysnap.models.blocks import block_skeleton
from raysnap.models.numerics import Numerics
from raysnap.search.engine.folding import build_inference_block
from raysnap.search.plan.costs import Kind
from raysnap.search.plan.walk import usual_batch_items

NUM_TIMED = 3


def measure_kinds(kinds: Iterable[Kind], numerics: Numerics) -> dict[Kind, float]:
    """Measure the seconds that each kind of block takes per item of a usual batch, with all threads at work.

    Blocks of equal shapes, FLOPs and bytes, as most of a transformer's are, are measured once.
    """
    seconds: dict[Kind, float] = {}
    known: dict[tuple[object, ...], float] = {}
    for architecture, image_size, index in sorted(kinds):
        shapes = block_shapes(architecture, image_size)
        input_shape = shapes[index - 1].output_shape if index else (3, image_size, image_size)
        shape = shapes[index]
        facts = (architecture, input_shape, shape.output_shape, shape.flops, shape.num_parameter_bytes)
        if facts not in known:
            batch_items = usual_batch_items(architecture, image_size, numerics.device.type)
            known[facts] = _seconds_per_item(architecture, image_size, index, (batch_items, *input_shape), numerics)
        seconds[architecture, image_size, index] = known[facts]
    return seconds


@torch.inference_mode()
def _seconds_per_item(
    architecture: str, image_size: int, index: int, input_shape: tuple[int, ...], numerics: Numerics
) -> float:
    """Return the best of some runs after a first one; in a search, each thread of a CPU runs its own batch."""
    tensors = {
        name: torch.zeros(tensor.shape, dtype=tensor.dtype)
        for name, tensor in block_skeleton(architecture, index).tensors().items()
    }
    block = build_inference_block(architecture, image_size, index, tensors, numerics)
    inputs = torch.zeros(input_shape, dtype=numerics.dtype, device=numerics.device)
    if inputs.dim() == 4:
        inputs = numerics.lay_out_images(inputs)
    num_streams = torch.get_num_threads() if numerics.device.type == "cpu" else 1
    threads_before = torch.get_num_threads()
    torch.set_num_threads(max(1, threads_before // num_streams))
    times_s = []
    for _ in range(1 + NUM_TIMED):
        started_s = time.perf_counter()
        block(inputs)
        if numerics.device.type == "cuda":
            torch.cuda.synchronize(numerics.device)
        times_s.append(time.perf_counter() - started_s)
    torch.set_num_threads(threads_before)
    return min(times_s[1:]) / input_shape[0] / num_streams
