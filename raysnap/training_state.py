"""What a fine-tune is between two epochs, in memory and in a checkpoint directory.

A checkpoint holds only what was trained: `best/<block>.safetensors`, which the driver collects, and where the trial is
to go on `last/<block>.safetensors` and `state.pt` (optimizer, random numbers, history), which nothing foreign is
unpickled from.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raysnap.config import TrainConfig
from raysnap.errors import WeightsError
from raysnap.numerics import Numerics
from raysnap.objects import canonical_block_bytes, decode

STATE_NAME = "state.pt"

BlockTensors = dict[str, dict[str, Tensor]]


@dataclass
class TrainingState:
    """Everything that the next epoch follows from, and the best epoch so far.

    Attributes:
        trained: the blocks that are trained, in place.
        shuffling: draws the order of the items.
        history: an entry per epoch.
        best: the scores of the best epoch, and `best_epoch`; empty before the first.
        best_tensors: that epoch's tensors, by block.
    """

    trained: nn.Sequential
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    shuffling: torch.Generator
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    best_tensors: BlockTensors = field(default_factory=dict)

    @classmethod
    def begin(cls, trained: nn.Sequential, config: TrainConfig, seed: int, numerics: Numerics) -> TrainingState:
        """The state before the first epoch."""
        return cls(
            trained,
            _make_optimizer(list(trained.parameters()), config),
            torch.amp.GradScaler(numerics.device.type, enabled=numerics.scales_gradients),
            torch.Generator().manual_seed(seed),
        )

    def end_epoch(self, entry: dict[str, float], scores: dict[str, float]) -> None:
        """Notes an epoch, and its tensors where it is the best so far on val: accuracy first, then loss."""
        self.history.append(entry)
        best = self.best
        if not best or (scores["val_accuracy"], -scores["val_loss"]) > (best["val_accuracy"], -best["val_loss"]):
            self.best = scores | {"best_epoch": entry["epoch"]}
            self.best_tensors = {name: _cloned(tensors) for name, tensors in self._tensors().items()}

    def restore_best(self) -> None:
        """Puts the best epoch's tensors into the trained blocks."""
        self._put(self.best_tensors)

    def save(self, directory: Path, random_states: list[dict[str, Tensor]] | None) -> None:
        """Writes a checkpoint; one that is to go on has the random states of all workers."""
        _write_blocks(directory / "best", self.best_tensors)
        if random_states is None:
            return
        _write_blocks(directory / "last", self._tensors())
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "shuffling": self.shuffling.get_state(),
            "random_states": random_states,
            "history": self.history,
            "best": self.best,
        }
        torch.save(state, directory / STATE_NAME)

    def load(self, directory: Path, rank: int) -> None:
        """Goes on from a checkpoint, this process's random numbers included.

        Raises:
            WeightsError: it can't be read, or is not one of such a fine-tune that was to go on.
        """
        path = directory / STATE_NAME
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.shuffling.set_state(state["shuffling"])
            self.history, self.best = list(state["history"]), dict(state["best"])
            random_states = state["random_states"]
        except (OSError, RuntimeError, pickle.UnpicklingError, LookupError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise WeightsError(
                f"{path}: expected the state of a fine-tune that was to go on, found none: {reason}; start the trial "
                "again without its checkpoint"
            ) from None
        self._put(_read_blocks(directory / "last", self._tensors()))
        self.best_tensors = _read_blocks(directory / "best", self._tensors())
        if rank < len(random_states):
            set_random_state(random_states[rank])

    def _tensors(self) -> BlockTensors:
        return {block.name: block.tensors() for block in self.trained}

    def _put(self, blocks: BlockTensors) -> None:
        for name, tensors in self._tensors().items():
            for key, tensor in tensors.items():
                tensor.copy_(blocks[name][key])


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of this process's generators that dropout and stochastic depth draw from."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: dict[str, Tensor]) -> None:
    """Puts the generators where they were."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _make_optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer, in torch's fused form: one pass over each tensor, which halves Adam's time on a CPU too."""
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum, **options)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer](parameters, **options)


def _cloned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in tensors.items()}


def _write_blocks(directory: Path, blocks: BlockTensors) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, tensors in blocks.items():
        (directory / f"{name}.safetensors").write_bytes(canonical_block_bytes(tensors))


def _read_blocks(directory: Path, expected: BlockTensors) -> BlockTensors:
    """The blocks in a folder; they are those that are `expected`, tensor by tensor and shape by shape."""
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
