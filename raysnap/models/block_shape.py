"""The names of a model's ends, and the shape of one block: its name, its bytes and its FLOPs."""

from __future__ import annotations

import math
from dataclasses import dataclass

STEM = "stem"
HEAD = "head"
"""The block that a new dataset replaces: a snapshot's features are what it takes."""

WIDTH_OF_MEASURED_HEADS = 1000
"""The number of classes for which a head's shape is measured."""


@dataclass(frozen=True)
class BlockShape:
    """What one block costs, without weights.

    Attributes:
        name: the block's name.
        output_shape: shape of the output for one item, without the batch dimension.
        flops: FLOPs per item of convolutions and matrix products (a multiply-add counts as two).
        num_parameter_bytes: bytes of parameters and buffers.
        kept_bytes: bytes per item that training keeps of the block for the backward pass, in float32.
    """

    name: str
    output_shape: tuple[int, ...]
    flops: int
    num_parameter_bytes: int
    kept_bytes: int

    @property
    def feature_dim(self) -> int:
        """The width of the output as features: what more than a vector is averaged over its places."""
        return self.output_shape[-1] if len(self.output_shape) < 3 else self.output_shape[0]

    @property
    def output_bytes(self) -> int:
        """The number of bytes of one item's float32 output."""
        return 4 * math.prod(self.output_shape)
