"""Blocks made ready for inference: batch norms folded into the convolutions before them, in one precision and layout.

In eval mode a batch norm is a scale and a shift per channel, which the convolution's weights and bias take over: the
activations are read and written once less.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from raysnap.anatomy import block_shapes
from raysnap.blocks import block_skeleton, build_block
from raysnap.numerics import Numerics

USUAL_IMAGE_SIZE = 224  # the only one that vision transformers of torchvision take


def build_inference_block(
    architecture: str, index: int, tensors: Mapping[str, Tensor], numerics: Numerics
) -> nn.Module:
    """Block `index` with these weights, folded, on its device; the tensors given stay as they are.

    Raises:
        WeightsError: the tensors aren't this block's.
    """
    block = build_block(architecture, index, tensors).requires_grad_(False).float()
    for conv_path, norm_path in _foldable_pairs(architecture, index):
        conv, norm = block.get_submodule(conv_path), block.get_submodule(norm_path)
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        block.set_submodule(norm_path, nn.Identity())
    block = block.requires_grad_(False).to(numerics.device, numerics.dtype)
    numerics.lay_out(block)
    return block


@cache
def _foldable_pairs(architecture: str, index: int) -> tuple[tuple[str, str], ...]:
    """The paths of each convolution in the block whose output a batch norm takes, and of that.

    Found by running the block without weights or values and watching which tensor goes where. In torchvision's models
    nothing else takes such an output, which the tests hold for every family.
    """
    block = block_skeleton(architecture, index)
    made_by: dict[int, tuple[Tensor, str]] = {}
    pairs: list[tuple[str, str]] = []

    def watch(path: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            made_by[id(output)] = (output, path)  # the tensor is held, so that its id stays its own
        elif id(inputs[0]) in made_by:
            pairs.append((made_by[id(inputs[0])][1], path))

    for path, module in block.named_modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.register_forward_hook(partial(watch, path))
    with torch.no_grad():
        block(_weightless_input(architecture, index))
    return tuple(pairs)


def _weightless_input(architecture: str, index: int) -> Tensor:
    """What the block takes for images of the size the architecture was made for, on the meta device."""
    if index == 0:
        return torch.empty(1, 3, USUAL_IMAGE_SIZE, USUAL_IMAGE_SIZE, device="meta")
    return torch.empty(1, *block_shapes(architecture, USUAL_IMAGE_SIZE)[index - 1].output_shape, device="meta")
