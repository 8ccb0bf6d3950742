"""From a batch to new weights: the loss, gradients, rates and averaged weights of an optimizer step.

By default a step is forward, mean cross entropy, backward and the optimizer's step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from raysnap.config.train import TrainConfig
from raysnap.errors import TrainingDiverged
from raysnap.models.blocks import blocks_of, num_classes_of
from raysnap.models.numerics import Numerics
from raysnap.training.feeds import Feed, Mix
from raysnap.training.state import TrainingState
from raysnap.training.worker import Worker

STEPS_PER_CHECK = 50  # reading the loss makes a GPU wait


@dataclass(frozen=True)
class UpdateStep:
    """What every optimizer step of a fine-tune has in common.

    Attributes:
        forward: runs the trained blocks; with several workers in DDP, compiled where configured.
        class_weights: of the loss, float32 `[num_classes]`; None weighs all classes equally.
        mix: mixes the images of a batch; None leaves them as they are.
    """

    forward: Callable[[Tensor], Tensor]
    state: TrainingState
    numerics: Numerics
    worker: Worker
    class_weights: Tensor | None
    mix: Mix | None

    @classmethod
    def start(
        cls,
        forward: Callable[[Tensor], Tensor],
        state: TrainingState,
        labels_N: Tensor,
        numerics: Numerics,
        worker: Worker,
    ) -> UpdateStep:
        """Return the steps of a fine-tune on training items of these labels."""
        config = state.config
        num_classes = num_outputs(state.trained)
        weights = balanced_weights(labels_N, num_classes) if config.class_weights == "balanced" else None
        return cls(
            forward,
            state,
            numerics,
            worker,
            None if weights is None else weights.to(numerics.device),
            _mix(config, num_classes) if config.is_mixing else None,
        )

    def run_epoch(self, feed: Feed) -> float:
        """Train on every item once, in a fresh order, and return the mean loss.

        Raises:
            TrainingDiverged: the loss became NaN or infinite.
        """
        config, worker = self.state.config, self.worker
        if config.batch_statistics == "keep":
            keep_batch_statistics(self.state.trained)
        num_items = len(feed.labels)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.numerics.device)
        batches = split_batches(torch.randperm(num_items, generator=self.state.shuffling), config.batch_size)
        first_step = len(self.state.history) * len(batches)
        for number, positions in enumerate(batches, start=1):
            self.state.set_lrs(first_step + number - 1, len(batches))
            loss_sum += self._update(feed, positions)
            self.state.average(first_step + number - 1)
            if number % STEPS_PER_CHECK == 0 and not math.isfinite(loss := worker.total(loss_sum.clone()).item()):
                raise diverged("train_loss", loss, config)
        return worker.total(loss_sum).item() / num_items

    def _update(self, feed: Feed, positions: Tensor) -> Tensor:
        """Take one optimizer step on a batch, in micro-batches where configured; return the sum of the losses."""
        state, config = self.state, self.state.config
        mine, weight = self.worker.part(positions)
        parts = split_batches(mine, config.micro_batch_size or len(mine))
        state.optimizer.zero_grad(set_to_none=True)
        sums = []
        for number, part in enumerate(parts, start=1):
            inputs, targets = feed.batch(part)
            with _unsynchronised(self.forward) if number < len(parts) else nullcontext():
                with self.numerics.autocast():
                    logits = self.forward(inputs)
                losses = weight * functional.cross_entropy(
                    logits.float(),
                    targets,
                    weight=self.class_weights,
                    reduction="sum",
                    label_smoothing=config.label_smoothing,
                )
                # DDP takes the mean over the workers; this makes it the mean over the items of the whole batch.
                state.scaler.scale(losses * (self.worker.world_size / len(positions))).backward()
            sums.append(losses.detach())
        if config.clip_norm is not None:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.trained.parameters(), config.clip_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        return functools.reduce(torch.add, sums)


def keep_batch_statistics(blocks: nn.Sequential) -> None:
    """Put all BatchNorm layers in eval mode: they normalise as before, and what they multiply by is trained."""
    for module in blocks.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def split_batches(positions: Tensor, batch_size: int) -> list[Tensor]:
    """Split positions into runs of `batch_size`; a last run of one joins the run before, as BatchNorm needs two."""
    runs = list(positions.split(batch_size))
    if len(runs) > 1 and len(runs[-1]) == 1:
        runs[-2:] = [torch.cat(runs[-2:])]
    return runs


def balanced_weights(labels_N: Tensor, num_classes: int) -> Tensor:
    """Return class weights inverse to the classes' numbers of items, with mean 1 over items; float32 `[num_classes]`.

    As scikit-learn's `balanced`, over the classes that have items; a class without any has weight 0.
    """
    counts_C = torch.bincount(labels_N.cpu(), minlength=num_classes).double()
    is_there_C = counts_C > 0
    weights_C = len(labels_N) / (int(is_there_C.sum()) * counts_C.clamp(min=1))
    return (weights_C * is_there_C).float()


def diverged(name: str, value: float | str, config: TrainConfig) -> TrainingDiverged:
    """Return the error of a fine-tune in which something became NaN or infinite."""
    lr = config.lr if config.layer_lrs is None else max(config.layer_lrs)
    return TrainingDiverged(f"{name} became {value}; try a smaller train.lr than {lr:g}")


def _mix(config: TrainConfig, num_classes: int) -> Mix:
    """Return torchvision's mixup or CutMix, or a random one of them per batch; draws from torch's global generator."""
    from torchvision.transforms import v2  # imports for a second, which most fine-tunes don't need

    kinds: list[Any] = []
    if config.mixup_alpha:
        kinds.append(v2.MixUp(alpha=config.mixup_alpha, num_classes=num_classes))
    if config.cutmix_alpha:
        kinds.append(v2.CutMix(alpha=config.cutmix_alpha, num_classes=num_classes))
    return kinds[0] if len(kinds) == 1 else v2.RandomChoice(kinds)


def num_outputs(blocks: nn.Sequential) -> int:
    """Return the number of classes of the head at the end of the blocks."""
    return num_classes_of(blocks_of(blocks)[-1].tensors())


def _unsynchronised(forward: Any) -> Any:
    """Return a context in which DDP leaves gradients on their worker, to be averaged with those of the next part."""
    return forward.no_sync() if hasattr(forward, "no_sync") else nullcontext()
