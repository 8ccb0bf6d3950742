"""How much of a GPU's memory each trial is forecast to take, without torch and before any was measured.

A forecast counts CUDA's context, the weights and, of trained blocks, gradients, the optimizer's moments, the best
epoch's copy, averaged weights and the copies in half precision; then the larger of what a training step keeps for its
backward pass and of what the largest block takes in a forward alone. It leaves out cuDNN's workspaces, memory that the
allocator can't use, gradients of activations, what autocast keeps in float32 (a part of a transformer's tenth) and what
`train.compile` changes. So it informs only: what trials share a GPU by is measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from raysnap.cluster.gpu_room import CONTEXT_BYTES, trials_per_gpu
from raysnap.config.parts import ResourcesConfig
from raysnap.errors import ConfigError
from raysnap.humanize import bytes_text
from raysnap.models.block_facts import block_shapes
from raysnap.models.block_shape import WIDTH_OF_MEASURED_HEADS
from raysnap.training.prefix_plan import CHUNK_ITEMS
from raysnap.training.trial import Trial

MOMENTS = {"adam": 2, "adamw": 2, "sgd": 1}


@dataclass(frozen=True)
class TrainingItems:
    """The items that a trial trains and is evaluated on.

    Attributes:
        num_items: of each split that is used: `train`, `val` and, where there is one, `test`.
    """

    num_classes: int
    num_items: Mapping[str, int]


@dataclass(frozen=True)
class GpuKind:
    """Trials that are forecast to need about the same memory.

    Attributes:
        retrain_index: None where all blocks are trained.
        peak_bytes: the most that one of them is forecast to take of a GPU.
        per_gpu: how many of them are expected on each GPU; None where none are packed, or no GPU's size is known.
    """

    architecture: str
    image_size: int
    batch_size: int
    retrain_index: int | None
    num_trials: int
    peak_bytes: int
    per_gpu: int | None


def peak_bytes(trial: Trial, image_size: int, items: TrainingItems, num_workers: int = 0) -> int:
    """Return the most that each process of a trial is forecast to take of its GPU, in bytes.

    Args:
        image_size: of a trial without its own.
        num_workers: processes that share every batch; 0 is one, in the trial's actor.
    """
    train, num_frozen = trial.train, trial.num_frozen
    shapes = block_shapes(trial.architecture, trial.image_size or image_size)
    scale = items.num_classes / WIDTH_OF_MEASURED_HEADS
    weights = [*(shape.num_parameter_bytes for shape in shapes[:-1]), shapes[-1].num_parameter_bytes * scale]
    is_half = train.precision != "float32"  # as `auto` is on a GPU
    copies = 2 + MOMENTS[train.optimizer] + (train.ema_decay is not None) + (num_workers > 1) + 0.5 * is_half

    batch_items = min(train.batch_size, items.num_items["train"])
    step_items = min(-(-batch_items // max(1, num_workers)), train.micro_batch_size or batch_items)
    given = shapes[num_frozen - 1].output_bytes if num_frozen else 0
    kept = step_items * (given + sum(shape.kept_bytes for shape in shapes[num_frozen:]))
    most_items = max(items.num_items.values())
    forward_items = min(max(train.batch_size, CHUNK_ITEMS if num_frozen else 0), most_items)
    forward = forward_items * max(shape.kept_bytes + shape.output_bytes for shape in shapes)
    activations = max(kept, forward) / (2 if is_half else 1)
    return math.ceil(CONTEXT_BYTES + sum(weights) + copies * sum(weights[num_frozen:]) + activations)


def gpu_kinds(
    trials: Iterable[Trial],
    image_size: int,
    items: Mapping[str, TrainingItems],
    resources: ResourcesConfig,
    gpu_bytes: Sequence[int],
) -> tuple[GpuKind, ...]:
    """Return what trials are forecast to take of GPUs, by kind; those that are to have none are left out.

    Args:
        items: of each dataset that trials name.
        gpu_bytes: the sizes of the GPUs, as far as they are known.
    """
    peaks: dict[tuple[str, int, int, int | None], list[int]] = {}
    for trial in trials:
        if trial.dataset is not None and resources.of(trial.architecture).gpus != 0:
            edge = trial.image_size or image_size
            kind = (trial.architecture, edge, trial.train.batch_size, trial.retrain_index)
            found = peak_bytes(trial, image_size, items[trial.dataset], resources.num_workers)
            peaks.setdefault(kind, []).append(found)
    return tuple(
        GpuKind(
            *kind,
            num_trials=len(found),
            peak_bytes=max(found),
            per_gpu=trials_per_gpu(max(found), min(gpu_bytes)) if gpu_bytes and resources.pack_gpus else None,
        )
        for kind, found in sorted(peaks.items(), key=lambda item: (*item[0][:3], item[0][3] is None, item[0][3] or 0))
    )


def check_gpus(kinds: Sequence[GpuKind], gpu_bytes: Sequence[int]) -> None:
    """Check that a trial of each kind fits the largest GPU, where one is known.

    Raises:
        ConfigError: one doesn't.
    """
    if not kinds or not gpu_bytes:
        return
    largest = max(kinds, key=lambda kind: kind.peak_bytes)
    if largest.peak_bytes > max(gpu_bytes):
        raise ConfigError(
            f"train.batch_size {largest.batch_size}: a trial of {largest.architecture} with images of "
            f"{largest.image_size} px is forecast to take {bytes_text(largest.peak_bytes)} of GPU memory, found GPUs "
            f"of at most {bytes_text(max(gpu_bytes))}; set a smaller train.batch_size or train.micro_batch_size, or "
            "resources.gpus=0 to train on CPUs"
        )
