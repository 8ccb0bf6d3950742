"""Rewrite a block for an x86 CPU, so that it takes fewer passes over its activations and fewer products.

oneDNN reads weights in a layout of its own: here they are brought into it once per block, not once per batch. Its
convolutions and linear layers also apply the activation, and add the residual, to what they have at hand, where torch
would write it and read it again. In float32, wide 3 x 3 convolutions take Winograd's arithmetic. Those that give a
handful of pixels, for which oneDNN is slow, become matrix products; where the CPU multiplies matrix tiles (AMX), those
that give short rows take a batch's images side by side.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import cache
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from raysnap.models.block import Block
from raysnap.search.engine.winograd import NUM_PRODUCTS, convolve, suits_winograd, transform_kernels

FEW_PIXELS = 4  # of an output, at most: a matrix product is 2 to 7 times as fast there, and slower for 16 pixels

# AMX multiplies 16 pixels of a row at once, as oneDNN uses it. Rows of up to so many pixels are slower than several
# images' rows in one, for kernels of so many numbers: of 7 pixels by 1.1 to 1.4 times, of 4 by twice. Smaller kernels,
# which stay in a core's cache, and wider rows gain less than the copies cost.
SHORT_ROW = 7
LARGE_KERNELS = 2**20
NUM_BESIDE = 16  # images for which the weights are packed: more and fewer are as fast

Attribute: TypeAlias = tuple[str, list[float], str]

_ATTRIBUTES: dict[type[nn.Module], Attribute] = {
    nn.Identity: ("none", [], ""),
    nn.ReLU: ("relu", [], ""),
    nn.ReLU6: ("hardtanh", [0.0, 6.0], ""),
    nn.SiLU: ("swish", [], ""),
    nn.Hardswish: ("hardswish", [], ""),
    nn.GELU: ("gelu", [], "none"),
}
"""What oneDNN calls an activation: its name, its numbers and its variant."""

_mkldnn = torch.ops.mkldnn


class Fused(nn.Module):
    """A layer that also applies the activation that follows it.

    Attributes:
        activation: applied to what the layer gives.
        growth: how many times the bytes of the weights their packed form takes.
    """

    growth = 1

    def __init__(self, layer: nn.Conv2d | nn.Linear):
        super().__init__()
        self.weight: Tensor = layer.weight
        self.bias: Tensor | None = layer.bias
        self.activation: nn.Module = nn.Identity()

    def pack(self) -> None:
        """Bring the weights, once they are there, into the form in which they are used."""
        self.weight = nn.Parameter(self.packed(self.weight), requires_grad=False)

    @abstractmethod
    def packed(self, weight: Tensor) -> Tensor:
        """Return the weights in that form."""

    @property
    def attribute(self) -> Attribute:
        """What oneDNN calls the activation."""
        return _ATTRIBUTES[type(self.activation)]


class PackedConv2d(Fused):
    """A convolution by oneDNN, its weights packed, with the residual and the activation in the same pass."""

    def __init__(self, conv: nn.Conv2d, image_size: tuple[int, int]):
        super().__init__(conv)
        self.input_shape = [1, conv.in_channels, *image_size]
        self.geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)

    def packed(self, weight: Tensor) -> Tensor:
        packed: Tensor = _mkldnn._reorder_convolution_weight(weight, *self.geometry, self.input_shape)
        return packed

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        output: Tensor
        if residual is None:
            output = _mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.geometry, *self.attribute)
        else:
            sum_ = ("add", 1.0, *self.attribute)
            output = _mkldnn._convolution_pointwise.binary(x, residual, self.weight, self.bias, *self.geometry, *sum_)
        return output


class WinogradConv2d(Fused):
    """A 3 x 3 convolution in Winograd's arithmetic, float32."""

    growth = NUM_PRODUCTS // 9

    def packed(self, weight: Tensor) -> Tensor:
        return transform_kernels(weight)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return _finish(convolve(x, self.weight, self.bias), residual, self.activation)


class FewPixelsConv2d(Fused):
    """A convolution as a product of the kernels with a matrix of all patches: `[N * OH * OW, KH * KW * C]`."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__(conv)
        self.kernel_size, self.stride = conv.kernel_size, conv.stride
        self.padding = _padding(conv)

    def packed(self, weight: Tensor) -> Tensor:
        return _pack_matrix(weight.permute(0, 2, 3, 1).reshape(len(weight), -1))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        down, across = self.padding
        padded_NHWC = nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, across, across, down, down))
        patches = padded_NHWC.unfold(1, self.kernel_size[0], self.stride[0]).unfold(
            2, self.kernel_size[1], self.stride[1]
        )
        num_images, height, width = patches.shape[:3]
        matrix = patches.permute(0, 1, 2, 4, 5, 3).reshape(num_images * height * width, -1)
        output_NHWK = _multiply(matrix, self.weight, self.bias).view(num_images, height, width, -1)
        return _finish(output_NHWK.permute(0, 3, 1, 2), residual, self.activation)


class SideBySideConv2d(PackedConv2d):
    """A 3 x 3 convolution of images side by side, as one wide image, with columns of zeros between them."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        num_images, num_channels, height, width = x.shape
        stride = self.geometry[1][1]
        wide_width = _wide_width(width, stride)
        wide = x.new_zeros(height, num_images, wide_width, num_channels)
        wide[:, :, :width] = x.permute(2, 0, 3, 1)
        wide_1CHW = wide.view(1, height, num_images * wide_width, num_channels).permute(0, 3, 1, 2)
        attribute = self.attribute if residual is None else _ATTRIBUTES[nn.Identity]
        output_1KHW = _mkldnn._convolution_pointwise(wide_1CHW, self.weight, self.bias, *self.geometry, *attribute)
        _, num_kernels, new_height, _ = output_1KHW.shape
        rows = output_1KHW.permute(0, 2, 3, 1).reshape(new_height, num_images, wide_width // stride, num_kernels)
        output_NHWK = rows[:, :, : (width - 1) // stride + 1].transpose(0, 1).contiguous()
        output: Tensor = output_NHWK.permute(0, 3, 1, 2)
        return output if residual is None else _finish(output, residual, self.activation)


class PackedLinear(Fused):
    """A linear layer by oneDNN, its weights packed, with the activation in the same pass; not for float32."""

    def packed(self, weight: Tensor) -> Tensor:
        return _pack_matrix(weight)

    def forward(self, x: Tensor) -> Tensor:
        return _multiply(x, self.weight, self.bias, self.attribute)


class FusedBasicBlock(nn.Module):
    """What becomes of torchvision's `BasicBlock`: two convolutions that activate and add."""

    conv1: nn.Module
    conv2: nn.Module
    downsample: nn.Module | None

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        output: Tensor = self.conv2(self.conv1(x), residual)
        return output


class FusedBottleneck(nn.Module):
    """What becomes of torchvision's `Bottleneck`: three convolutions that activate and add."""

    conv1: nn.Module
    conv2: nn.Module
    conv3: nn.Module
    downsample: nn.Module | None

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        output: Tensor = self.conv3(self.conv2(self.conv1(x)), residual)
        return output


def fuse(block: Block, image_sizes: Mapping[str, tuple[int, int]], dtype: torch.dtype) -> None:
    """Rewrite a block without weights in place, its batch norms folded; tensors keep their names.

    Args:
        image_sizes: height and width of each convolution's input, by the convolution's path.
        dtype: what the block computes in.
    """
    from raysnap.models.lean_torchvision import (
        models,
    )  # takes 0.3 s, which an answer from the feature cache does without

    for path, module in list(block.named_modules()):
        if type(module) is nn.Conv2d and module.padding_mode == "zeros" and path in image_sizes:
            block.set_submodule(path, _fused_conv(module, image_sizes[path], dtype))
    for module in list(block.modules()):
        if module is block.steps or type(module).forward is nn.Sequential.forward:
            _fuse_sequence(cast(nn.Sequential, module), dtype)
        elif type(module) is models.resnet.BasicBlock:
            module.__class__ = FusedBasicBlock  # only `forward` is another
            _activate(module, "conv1", "conv2")
        elif type(module) is models.resnet.Bottleneck:
            module.__class__ = FusedBottleneck
            _activate(module, "conv1", "conv2", "conv3")


def _activate(block: nn.Module, *names: str) -> None:
    for name in names:
        block.get_submodule(name).activation = block.get_submodule("relu")


def _fused_conv(conv: nn.Conv2d, image_size: tuple[int, int], dtype: torch.dtype) -> Fused:
    if dtype == torch.float32 and suits_winograd(conv, *image_size):
        return WinogradConv2d(conv)
    is_plain = (conv.kernel_size, conv.groups, conv.dilation) == ((3, 3), 1, (1, 1))
    height, width = (
        (size + 2 * padding - 3) // stride + 1
        for size, padding, stride in zip(image_size, _padding(conv), conv.stride, strict=True)
    )
    if is_plain and height * width <= FEW_PIXELS:
        return FewPixelsConv2d(conv)
    takes_one = _padding(conv) == (1, 1) and width <= SHORT_ROW and conv.weight.numel() >= LARGE_KERNELS
    if is_plain and takes_one and dtype == torch.bfloat16 and _has_tiles():
        return SideBySideConv2d(conv, (image_size[0], NUM_BESIDE * _wide_width(image_size[1], conv.stride[1])))
    return PackedConv2d(conv, image_size)


@cache
def _has_tiles() -> bool:
    """Return whether this CPU multiplies matrix tiles of bfloat16; False if torch is too old to know."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return capabilities.get("amx_bf16", False)


def _wide_width(width: int, stride: int) -> int:
    """Return the columns of an image and the zeros after it: its outputs begin at a multiple of the stride."""
    return -(-(width + 1) // stride) * stride


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    """Return the pixels added above and below, and on the left and the right."""
    assert not isinstance(conv.padding, str), "torchvision's models give numbers"
    height, width = conv.padding
    return height, width


def _fuse_sequence(sequence: nn.Sequential | nn.ModuleList, dtype: torch.dtype) -> None:
    """Let each layer apply the activation after it; linear layers are packed, where that is faster."""
    last: Fused | None = None
    for position, module in enumerate(sequence):
        if type(module) is nn.Linear and dtype != torch.float32:
            sequence[position] = last = PackedLinear(module)
        elif isinstance(module, Fused):
            last = module
        elif last is not None and type(module) in _ATTRIBUTES and not isinstance(module, nn.Identity):
            last.activation, sequence[position], last = module, nn.Identity(), None
        elif not isinstance(module, nn.Identity):
            last = None


def _pack_matrix(weight_KC: Tensor) -> Tensor:
    """Return the weights of a linear layer as `_multiply` takes them."""
    if weight_KC.dtype == torch.float32:
        return weight_KC.contiguous()
    packed: Tensor = _mkldnn._reorder_linear_weight(weight_KC.contiguous())
    return packed


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, attribute: Attribute = ("none", [], "")) -> Tensor:
    """Return `x` times the packed weights, plus the bias, activated."""
    if weight.dtype == torch.float32:
        return nn.functional.linear(x, weight, bias)
    output: Tensor = _mkldnn._linear_pointwise(x, weight, bias, *attribute)
    return output


def _finish(output: Tensor, residual: Tensor | None, activation: nn.Module) -> Tensor:
    """Add the residual to the output and activate it, in place."""
    if residual is not None:
        output += residual
    activated: Tensor = activation(output)
    return activated
