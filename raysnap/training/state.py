"""The state of a fine-tune between two epochs, in memory and in a checkpoint directory.

A checkpoint holds only what was trained: `best/<block>.safetensors`, which the driver collects, and of an unfinished
trial `last/<block>.safetensors` and `state.pt` (optimizer, random numbers, history), which is read without unpickling
foreign classes.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from raysnap.atomic import plain_disk_errors
from raysnap.config.train import TrainConfig
from raysnap.errors import WeightsError
from raysnap.models.blocks import blocks_of
from raysnap.models.numerics import Numerics
from raysnap.models.tensor_bytes import canonical_block_bytes, decode
from raysnap.training.schedules import block_lrs, lr_factor

STATE_NAME = "state.pt"

BlockTensors: TypeAlias = dict[str, dict[str, Tensor]]


@dataclass
class TrainingState:
    """Everything that the next epoch follows from, and the best epoch so far.

    Attributes:
        trained: the blocks that are trained, in place.
        averaged: the same blocks with averaged weights, which are then scored and kept; None without averaging.
        full_lrs: the rate of each parameter group before its schedule.
        shuffling: draws the order of the items.
        history: an entry per epoch.
        best: the scores of the best epoch, and `best_epoch`; empty before the first.
        best_tensors: that epoch's tensors, by block.
    """

    trained: nn.Sequential
    averaged: nn.Sequential | None
    config: TrainConfig
    optimizer: torch.optim.Optimizer
    full_lrs: list[float]
    scaler: torch.amp.GradScaler
    shuffling: torch.Generator
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    best_tensors: BlockTensors = field(default_factory=dict)

    @classmethod
    def start(cls, trained: nn.Sequential, config: TrainConfig, seed: int, numerics: Numerics) -> TrainingState:
        """Return the state before the first epoch.

        Raises:
            ConfigError: there are more `layer_lrs` than trained blocks.
        """
        groups = parameter_groups(trained, config)
        return cls(
            trained,
            copy.deepcopy(trained) if config.ema_decay is not None else None,
            config,
            _make_optimizer(groups, config),
            [group["lr"] for group in groups],
            torch.amp.GradScaler(numerics.device.type, enabled=numerics.scales_gradients),
            torch.Generator().manual_seed(seed),
        )

    @property
    def scored(self) -> nn.Sequential:
        """The blocks that are evaluated on val and test, and kept."""
        return self.trained if self.averaged is None else self.averaged

    @property
    def is_over(self) -> bool:
        """Whether no epoch is left, or something ended the fine-tune before its last one."""
        return len(self.history) >= self.config.epochs or self.cut_short_by is not None

    @property
    def cut_short_by(self) -> str | None:
        """What ended the fine-tune before its last epoch: `patience`, or `time_limit`, which no further epoch fits."""
        num_epochs, patience, limit_s = len(self.history), self.config.patience, self.config.time_limit_s
        if num_epochs >= self.config.epochs:
            return None
        if patience is not None and num_epochs - self.best.get("best_epoch", num_epochs) >= patience:
            return "patience"
        spent_s = [epoch["epoch_s"] for epoch in self.history]
        return "time_limit" if limit_s is not None and spent_s and sum(spent_s) + spent_s[-1] > limit_s else None

    def set_lrs(self, step: int, steps_per_epoch: int) -> None:
        """Set every parameter group to the rate of optimizer step `step`, counted from 0 over all epochs."""
        factor = lr_factor(self.config, step, steps_per_epoch)
        for group, lr in zip(self.optimizer.param_groups, self.full_lrs, strict=True):
            group["lr"] = lr * factor

    @torch.no_grad()
    def average(self, step: int) -> None:
        """Move the averaged weights towards the trained ones after optimizer step `step`, counted from 0.

        The decay rises to its full value over the first steps, as (1 + step) / (10 + step), so that the average moves
        away from the initial weights; BatchNorm's statistics are averaged too.
        """
        if self.averaged is None or self.config.ema_decay is None:
            return
        weight = 1 - min(self.config.ema_decay, (1 + step) / (10 + step))
        kept, tensors = (list(blocks.state_dict().values()) for blocks in (self.averaged, self.trained))
        floats = [index for index, tensor in enumerate(tensors) if tensor.is_floating_point()]
        torch._foreach_lerp_([kept[index] for index in floats], [tensors[index] for index in floats], weight)
        for index in set(range(len(tensors))) - set(floats):
            kept[index].copy_(tensors[index])

    def end_epoch(self, entry: dict[str, float], scores: dict[str, float]) -> None:
        """Add an epoch to the history, and keep its tensors where it is the best so far in the monitored metric."""
        self.history.append(entry)
        if not self.best or _merit(scores, self.config) > _merit(self.best, self.config):
            self.best = scores | {"best_epoch": entry["epoch"]}
            self.best_tensors = {name: _cloned(tensors) for name, tensors in _tensors(self.scored).items()}

    def restore_best(self) -> None:
        """Load the best epoch's tensors into the trained blocks."""
        _copy_into(self.best_tensors, self.trained)

    def save(self, directory: Path, random_states: list[dict[str, Tensor]] | None) -> None:
        """Write a checkpoint; an unfinished one has the random states of all workers."""
        _write_blocks(directory / "best", self.best_tensors)
        if random_states is None:
            return
        _write_blocks(directory / "last", _tensors(self.trained))
        if self.averaged is not None:
            _write_blocks(directory / "average", _tensors(self.averaged))
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "shuffling": self.shuffling.get_state(),
            "random_states": random_states,
            "history": self.history,
            "best": self.best,
        }
        with plain_disk_errors(), (directory / STATE_NAME).open("wb") as file:
            torch.save(state, file)

    def load(self, directory: Path, rank: int) -> None:
        """Load a checkpoint, this process's random state included; settings stay those of this state's configuration.

        Raises:
            WeightsError: it can't be read, or is not an unfinished checkpoint of such a fine-tune.
        """
        path = directory / STATE_NAME
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            settings = [_settings(group) for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(state["optimizer"])
            for group, own in zip(self.optimizer.param_groups, settings, strict=True):
                group.update(own)
            self.scaler.load_state_dict(state["scaler"])
            self.shuffling.set_state(state["shuffling"])
            self.history, self.best = list(state["history"]), dict(state["best"])
            random_states = state["random_states"]
        except (OSError, RuntimeError, pickle.UnpicklingError, LookupError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise WeightsError(
                f"{path}: expected the state of an unfinished fine-tune, found none: {reason}; restart the trial "
                "without its checkpoint"
            ) from None
        _copy_into(_read_blocks(directory / "last", _tensors(self.trained)), self.trained)
        if self.averaged is not None:
            _copy_into(_read_blocks(directory / "average", _tensors(self.averaged)), self.averaged)
        self.best_tensors = _read_blocks(directory / "best", _tensors(self.trained))
        if rank < len(random_states):
            set_random_state(random_states[rank])


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of this process's generators that dropout and stochastic depth draw from."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: dict[str, Tensor]) -> None:
    """Restore the states of the generators."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def parameter_groups(trained: nn.Sequential, config: TrainConfig) -> list[dict[str, Any]]:
    """Return the trained parameters with their full rates: one group, or one per block where rates differ by block.

    Raises:
        ConfigError: there are more `layer_lrs` than trained blocks.
    """
    if config.layer_lrs is None and config.layer_lr_decay is None:
        return [{"params": list(trained.parameters()), "lr": config.lr}]
    lrs = block_lrs(config, len(trained))
    return [{"params": list(block.parameters()), "lr": lr} for block, lr in zip(trained, lrs, strict=True)]


def _make_optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer in torch's fused form: one pass over each tensor, which halves Adam's time even on a CPU."""
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, **options)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer](groups, **options)


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def best_scores(history: Sequence[Mapping[str, float]], config: TrainConfig) -> dict[str, float]:
    """Return the scores on val of the best epoch so far, and its number; empty for an empty history."""
    if not history:
        return {}
    best = max(history, key=lambda entry: _merit(entry, config))
    scores = {name: value for name, value in best.items() if name.startswith("val_")}
    return scores | {"best_epoch": best["epoch"]}


def _merit(scores: Mapping[str, float], config: TrainConfig) -> tuple[float, ...]:
    """Return what epochs are compared by: the loss, or the accuracy and then the loss."""
    loss = -scores["val_loss"]
    return (loss,) if config.monitor == "val_loss" else (scores["val_accuracy"], loss)


def _tensors(blocks: nn.Sequential) -> BlockTensors:
    return {block.name: block.tensors() for block in blocks_of(blocks)}


def _copy_into(found: BlockTensors, blocks: nn.Sequential) -> None:
    for name, tensors in _tensors(blocks).items():
        for key, tensor in tensors.items():
            tensor.copy_(found[name][key])


def _cloned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in tensors.items()}


def _write_blocks(directory: Path, blocks: BlockTensors) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, tensors in blocks.items():
        (directory / f"{name}.safetensors").write_bytes(canonical_block_bytes(tensors))


def _read_blocks(directory: Path, expected: BlockTensors) -> BlockTensors:
    """Read the blocks of a folder, which must have the `expected` tensors and shapes."""
    blocks = {}
    for name, tensors in expected.items():
        path = directory / f"{name}.safetensors"
        try:
            content = bytearray(path.read_bytes())
        except OSError as error:
            raise WeightsError(f"{path}: expected the trained block {name}, found none: {error.strerror}") from None
        found = decode(memoryview(content), str(path))
        shapes = {key: tuple(tensor.shape) for key, tensor in found.items()}
        if shapes != {key: tuple(tensor.shape) for key, tensor in tensors.items()}:
            raise WeightsError(f"{path}: expected the tensors of block {name}, found others; is it another trial's?")
        blocks[name] = {key: tensor.to(tensors[key].device) for key, tensor in found.items()}
    return blocks
