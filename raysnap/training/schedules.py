"""Learning rates as pure functions of a block's depth and of the step, so that a checkpoint need not hold them.

A resumed fine-tune, or one that takes over another's weights, has the rates of its configuration at once.
"""

from __future__ import annotations

import math

from raysnap.config.train import TrainConfig
from raysnap.errors import ConfigError

# torch.optim.lr_scheduler.OneCycleLR's defaults.
ONE_CYCLE_RISE = 0.3
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = 1 / 25 / 1e4


def block_lrs(config: TrainConfig, num_trained: int) -> list[float]:
    """Return the full learning rate of each trained block, from the front to the head.

    The head takes the first of `layer_lrs`. The blocks below it share the others evenly, in order; where they don't
    divide evenly, the rates nearer to the head take one block more.

    Raises:
        ConfigError: there are more `layer_lrs` than trained blocks.
    """
    if config.layer_lr_decay is not None:
        return [config.lr * config.layer_lr_decay**above for above in reversed(range(num_trained))]
    if config.layer_lrs is None:
        return [config.lr] * num_trained
    first, *others = config.layer_lrs
    if len(config.layer_lrs) > num_trained:
        raise ConfigError(
            f"train.layer_lrs: expected at most one rate for each of the {num_trained} trained blocks, found "
            f"{len(config.layer_lrs)}; list fewer or retrain more blocks"
        )
    lrs = [first]
    for place, lr in enumerate(others or [first]):
        lrs += [lr] * len(range(place, num_trained - 1, max(1, len(others))))
    return lrs[::-1]


def lr_factor(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Return the factor of the full rates in optimizer step `step`, counted from 0 over all epochs.

    The curves are those of torch's CosineAnnealingLR, OneCycleLR and StepLR. A warm-up replaces the first steps by a
    linear rise that reaches the full rate right after them.
    """
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    num_steps = config.epochs * steps_per_epoch
    match config.schedule:
        case "constant":
            return 1.0
        case "step":
            return config.step_factor ** ((step - warmup_steps) // (config.step_epochs * steps_per_epoch))
        case "cosine":
            return _cosine(1.0, 0.0, (step - warmup_steps) / (num_steps - warmup_steps))
        case "one_cycle":
            top = ONE_CYCLE_RISE * num_steps - 1
            if step <= top:
                return _cosine(ONE_CYCLE_START, 1.0, step / top if top else 1.0)
            return _cosine(1.0, ONE_CYCLE_END, (step - top) / (num_steps - 1 - top))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
