"""The model that a fine-tune starts from, whose first blocks stay frozen: frozen, and verified to have stayed so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from raysnap.errors import FrozenBlockChanged
from raysnap.models.blocks import blocks_of
from raysnap.models.tensor_bytes import block_digest


@dataclass(frozen=True)
class StartModel:
    """A model of which the first blocks are to stay frozen.

    Attributes:
        model: blocks from stem to head, on the device to train on; trained in place.
        num_frozen: how many blocks at the front stay frozen.
        base_digests: the digests that the frozen blocks must keep, in order; those after them are ignored.
        architecture: torchvision's builder name; None where it may not matter for speed.
    """

    model: nn.Sequential
    num_frozen: int
    base_digests: Sequence[str]
    architecture: str | None = None

    @property
    def frozen(self) -> nn.Sequential:
        """The blocks that stay frozen, possibly none."""
        return self.model[: self.num_frozen]

    @property
    def trained(self) -> nn.Sequential:
        """The blocks that are trained, the head among them."""
        return self.model[self.num_frozen :]

    @property
    def frozen_digests(self) -> Sequence[str]:
        """The digests that the frozen blocks must keep."""
        return self.base_digests[: self.num_frozen]

    def freeze(self) -> None:
        """Put the frozen blocks in eval mode without gradients, and the others in train mode with them."""
        for index, block in enumerate(self.model):
            block.requires_grad_(index >= self.num_frozen).train(index >= self.num_frozen)

    def check_frozen(self) -> None:
        """Check that the frozen blocks have their digests and are in eval mode.

        Raises:
            FrozenBlockChanged: a block differs; the message names the first.
        """
        for block, expected in zip(blocks_of(self.model), self.frozen_digests, strict=False):
            found = block_digest(block.tensors())
            if found != expected:
                raise FrozenBlockChanged(
                    f"block {block.name} should have stayed frozen: expected digest {expected[:12]}, found "
                    f"{found[:12]}; nothing of this trial is stored"
                )
            if any(module.training for module in block.modules()):
                raise FrozenBlockChanged(
                    f"block {block.name} should have stayed frozen: expected eval mode, found training mode, in which "
                    "dropout and stochastic depth are on and BatchNorm drifts; nothing of this trial is stored"
                )
