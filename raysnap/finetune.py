"""One fine-tune: a plain function over a model, its data and a configuration; no Ray in it.

Frozen blocks run in eval mode without autograd, once per item where no augmentation changes their input, and must come
out byte-identical: BatchNorm statistics do not drift, dropout and stochastic depth are off in them. The epoch that does
best on val is the one that is kept; test is looked at once, after that choice.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from raysnap.batches import augment, normalise
from raysnap.config import TrainConfig
from raysnap.errors import FrozenBlockChanged, TrainingDiverged
from raysnap.manifest import Preprocessing
from raysnap.objects import block_digest

logger = logging.getLogger(__name__)

Scores = dict[str, float]

MAX_PREFIX_BYTES = 2**30
PREFIX_BATCH_ITEMS = 64


@dataclass(frozen=True)
class LabelledPixels:
    """The items of one split.

    Attributes:
        read: takes item positions and an edge S in pixels, gives their centre crops, uint8 `[n, 3, S, S]`.
        labels: class indices, int64 `[N]`.
    """

    read: Callable[[Sequence[int], int], Tensor]
    labels: Tensor


@dataclass(frozen=True)
class FinetuneResult:
    """What a fine-tune leaves behind; the model itself holds the best epoch's weights.

    Attributes:
        metrics: `val_accuracy`, `val_loss`, `test_accuracy`, `test_loss` (test where there is one), `best_epoch`.
        history: a dict per epoch: `epoch`, `train_loss`, `val_loss`, `val_accuracy`, `epoch_s`.
        timings_s: `train`, `evaluate`, `verify`.
    """

    metrics: dict[str, float]
    history: list[dict[str, float]]
    timings_s: dict[str, float]


def finetune(
    model: nn.Sequential,
    num_frozen: int,
    splits: dict[str, LabelledPixels],
    preprocessing: Preprocessing,
    config: TrainConfig,
    *,
    seed: int,
    base_digests: Sequence[str],
    report: Callable[[dict[str, float]], None],
) -> FinetuneResult:
    """Trains all but the first `num_frozen` blocks of `model` in place and says how it went.

    Args:
        model: blocks from stem to head, on the device to train on.
        splits: `train` and `val`, and `test` where there is one.
        base_digests: the digests that the frozen blocks must still have afterwards, in order.
        report: called with each epoch's history entry.

    Raises:
        TrainingDiverged: the loss became NaN or infinite.
        FrozenBlockChanged: a frozen block no longer has its digest.
    """
    device = next(model.parameters()).device
    freeze(model, num_frozen)
    trained = model[num_frozen:]
    optimizer = _make_optimizer(list(trained.parameters()), config)
    shuffling = torch.Generator().manual_seed(seed)
    augmenting = torch.Generator(device=device).manual_seed(seed) if config.augment else None
    history: list[dict[str, float]] = []
    best: dict[str, float] = {}
    best_tensors: dict[str, Tensor] = {}
    timings_s = dict.fromkeys(("train", "evaluate", "verify"), 0.0)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        train = _Feed.of(model[:num_frozen], splits["train"], preprocessing, device, augmenting)
        val = _Feed.of(model[:num_frozen], splits["val"], preprocessing, device)
        for epoch in range(1, config.epochs + 1):
            started = time.perf_counter()
            train_loss = _train_epoch(trained, train, config, optimizer, shuffling)
            evaluating = time.perf_counter()
            scores = {f"val_{name}": value for name, value in _evaluate(trained, val, config.batch_size).items()}
            ended = time.perf_counter()
            timings_s["train"] += evaluating - started
            timings_s["evaluate"] += ended - evaluating
            history.append({"epoch": epoch, "train_loss": train_loss} | scores | {"epoch_s": ended - started})
            report(history[-1])
            if not best or (scores["val_accuracy"], -scores["val_loss"]) > (best["val_accuracy"], -best["val_loss"]):
                best = scores | {"best_epoch": epoch}
                best_tensors = {name: value.clone() for name, value in trained.state_dict().items()}
    trained.load_state_dict(best_tensors)
    started = time.perf_counter()
    if "test" in splits:
        test = evaluate(model, splits["test"], preprocessing, config.batch_size)
        best |= {f"test_{name}": value for name, value in test.items()}
    timings_s["evaluate"] += time.perf_counter() - started
    started = time.perf_counter()
    check_frozen(model, base_digests[:num_frozen])
    timings_s["verify"] = time.perf_counter() - started
    return FinetuneResult(metrics=best, history=history, timings_s=timings_s)


def freeze(model: nn.Sequential, num_frozen: int) -> None:
    """Puts the first `num_frozen` blocks in eval mode without gradients, and the others in train mode with them."""
    for index, block in enumerate(model):
        block.requires_grad_(index >= num_frozen).train(index >= num_frozen)


def check_frozen(model: nn.Sequential, digests: Sequence[str]) -> None:
    """Passes when the first `len(digests)` blocks still have these digests.

    Raises:
        FrozenBlockChanged: naming the first block that differs.
    """
    for block, expected in zip(model, digests, strict=False):
        found = block_digest(block.tensors())
        if found != expected:
            raise FrozenBlockChanged(
                f"block {block.name} was to stay frozen: expected digest {expected[:12]}, found {found[:12]} after "
                "training; nothing of this trial is stored"
            )


def evaluate(model: nn.Sequential, items: LabelledPixels, preprocessing: Preprocessing, batch_size: int) -> Scores:
    """Mean loss, accuracy and top-5 accuracy of the model in eval mode; each block's mode is put back afterwards."""
    return _evaluate(model, _Feed.of(model[:0], items, preprocessing, next(model.parameters()).device), batch_size)


@dataclass(frozen=True)
class _Feed:
    """What the trained blocks are given: for item positions their inputs and their labels, on the device."""

    inputs: Callable[[Tensor], Tensor]
    labels: Tensor

    @classmethod
    def of(
        cls,
        frozen: nn.Sequential,
        items: LabelledPixels,
        preprocessing: Preprocessing,
        device: torch.device,
        augmenting: torch.Generator | None = None,
    ) -> _Feed:
        """The items after the frozen blocks, which run once per item when there is no augmentation and it fits."""
        edge = preprocessing.image_size if augmenting is None else preprocessing.resize_size

        @torch.no_grad()
        def compute(positions: Tensor) -> Tensor:
            pixels = items.read(positions.tolist(), edge).to(device)
            if augmenting is not None:
                pixels = augment(pixels, augmenting, preprocessing.image_size)
            return frozen(normalise(pixels, preprocessing.mean, preprocessing.std))

        labels = items.labels.to(device)
        first = compute(torch.arange(1)) if len(frozen) and augmenting is None else None
        if first is None or first.nbytes * len(labels) > MAX_PREFIX_BYTES:
            return cls(compute, labels)
        outputs = torch.cat([compute(positions) for positions in torch.arange(len(labels)).split(PREFIX_BATCH_ITEMS)])
        return cls(lambda positions: outputs[positions.to(device)], labels)


def _evaluate(blocks: nn.Sequential, feed: _Feed, batch_size: int) -> Scores:
    modes = [block.training for block in blocks]
    blocks.eval()
    loss_sum, num_right, num_right_of_5 = 0.0, 0, 0
    with torch.inference_mode():
        for positions in _batches(torch.arange(len(feed.labels)), batch_size):
            labels = feed.labels[positions]
            logits = blocks(feed.inputs(positions)).float()
            loss_sum += functional.cross_entropy(logits, labels, reduction="sum").item()
            top = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            num_right += int(top[:, 0].sum())
            num_right_of_5 += int(top.any(dim=1).sum())
    for block, mode in zip(blocks, modes, strict=True):
        block.train(mode)
    num_items = len(feed.labels)
    return {
        "loss": loss_sum / num_items,
        "accuracy": num_right / num_items,
        "top5_accuracy": num_right_of_5 / num_items,
    }


def _train_epoch(
    blocks: nn.Sequential,
    feed: _Feed,
    config: TrainConfig,
    optimizer: torch.optim.Optimizer,
    shuffling: torch.Generator,
) -> float:
    """One pass over the items in a fresh order; returns the mean loss."""
    loss_sum = 0.0
    for positions in _batches(torch.randperm(len(feed.labels), generator=shuffling), config.batch_size):
        loss = functional.cross_entropy(blocks(feed.inputs(positions)), feed.labels[positions])
        if not math.isfinite(loss_value := loss.item()):
            raise TrainingDiverged(f"the training loss became {loss_value}; try a smaller train.lr than {config.lr:g}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss_sum += loss_value * len(positions)
    return loss_sum / len(feed.labels)


def _batches(positions: Tensor, batch_size: int) -> list[Tensor]:
    """The positions in runs of `batch_size`; a last run of one joins its neighbour, as BatchNorm can't train on one."""
    runs = list(positions.split(batch_size))
    if len(runs) > 1 and len(runs[-1]) == 1:
        runs[-2:] = [torch.cat(runs[-2:])]
    return runs


def _make_optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer, in torch's fused form: one pass over each tensor, which halves Adam's time on a CPU too."""
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum, **options)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer](parameters, **options)
