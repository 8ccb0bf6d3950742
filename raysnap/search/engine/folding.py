"""Prepare blocks for inference: batch norms folded into the convolutions before them, in one precision and layout.

In eval mode a batch norm is a scale and a shift per channel, which the convolution's weights and bias absorb: the
activations are read and written once less. On an x86 CPU the rest is fused too (`fusing`). What all blocks of a kind
have in common is computed once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

from raysnap.models.block import Block
from raysnap.models.block_facts import block_shapes
from raysnap.models.blocks import block_skeleton, in_float32
from raysnap.models.families.family import item_shape
from raysnap.models.families.recording import leaves
from raysnap.models.numerics import Numerics
from raysnap.search.engine.fusing import Fused, fuse


def build_inference_block(
    architecture: str, image_size: int, index: int, tensors: Mapping[str, Tensor], numerics: Numerics
) -> nn.Module:
    """Build block `index`, not a head, with these weights, on its device, in memory of its own.

    It takes images of any size that its architecture takes, and is made to be fast for `image_size` pixels.

    Raises:
        WeightsError: the tensors aren't this block's.
    """
    recipe = _recipe(architecture, image_size, index, numerics.dtype if numerics.is_fused else None)
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != recipe.shapes:
        block_skeleton(architecture, index).load(tensors)  # raises, and says how they differ
    own_names = {stored: own for own, stored in recipe.block.stored_names.items()}
    weights = in_float32({own_names.get(name, name): tensor for name, tensor in tensors.items()})
    for fold in recipe.folds:
        weights[fold.weight], weights[fold.bias] = fold.apply(weights)
    block = _copy_module(recipe.block)
    modules = dict(block.named_modules())
    for slot in recipe.slots:
        module = modules[slot.path]
        value = weights[slot.name] if slot.is_stored else module.get_buffer(slot.key)
        weight = _prepare(value, numerics, will_be_packed=isinstance(module, Fused))
        if slot.is_parameter:
            module._parameters[slot.key] = nn.Parameter(weight, requires_grad=False)
        else:
            module._buffers[slot.key] = weight
    for module in modules.values():
        if isinstance(module, Fused):
            module.pack()
    return block


@cache
def prepared_bytes(architecture: str, image_size: int, index: int, numerics: Numerics) -> int:
    """Return the bytes of the values of a block that `build_inference_block` builds."""
    recipe = _recipe(architecture, image_size, index, numerics.dtype if numerics.is_fused else None)
    modules = dict(recipe.block.named_modules())
    total = 0
    for slot in recipe.slots:
        module = modules[slot.path]
        value = module.get_parameter(slot.key) if slot.is_parameter else module.get_buffer(slot.key)
        growth = module.growth if isinstance(module, Fused) and slot.key == "weight" else 1
        total += growth * value.numel() * (numerics.dtype if value.is_floating_point() else value.dtype).itemsize
    return total


@dataclass(frozen=True)
class _Slot:
    """Where a tensor goes: the module's path in the block, and the parameter or buffer there; tables aren't stored."""

    path: str
    key: str
    is_parameter: bool
    is_stored: bool
    name: str


@dataclass(frozen=True)
class _Fold:
    """A convolution and the batch norm after it, by the names of their tensors; the bias may be missing."""

    weight: str
    bias: str
    norm: str
    eps: float

    def apply(self, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the convolution's weight and bias with the batch norm in them."""
        mean, variance = weights[f"{self.norm}.running_mean"], weights[f"{self.norm}.running_var"]
        scale, shift = weights.get(f"{self.norm}.weight"), weights.get(f"{self.norm}.bias")
        weight, bias = weights[self.weight], weights.get(self.bias)
        return fuse_conv_bn_weights(weight, bias, mean, variance, self.eps, scale, shift)


@dataclass(frozen=True)
class _Recipe:
    """How a kind of block is made from tensors.

    Attributes:
        block: its modules without weights, an identity in place of each folded batch norm.
        shapes: the shapes of the tensors it is made from, by the names under which they are stored.
    """

    block: Block
    shapes: Mapping[str, tuple[int, ...]]
    folds: tuple[_Fold, ...]
    slots: tuple[_Slot, ...]


@cache
def _recipe(architecture: str, image_size: int, index: int, fused_dtype: torch.dtype | None) -> _Recipe:
    block = block_skeleton(architecture, index)
    shapes = {name: tuple(tensor.shape) for name, tensor in block.tensors().items()}
    folds = []
    pairs, image_sizes = _watch_convolutions(architecture, image_size, index)
    for conv_path, norm_path in pairs:
        conv, norm = block.get_submodule(conv_path), block.get_submodule(norm_path)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        weight, bias = _full_name(block, conv_path, "weight"), _full_name(block, conv_path, "bias")
        folds.append(_Fold(weight, bias, _full_name(block, norm_path), norm.eps))
        conv.bias = nn.Parameter(torch.empty(conv.out_channels, device="meta"))
        block.set_submodule(norm_path, nn.Identity())
    if fused_dtype is not None:
        fuse(block, image_sizes, fused_dtype)
    slots = [
        _Slot(path, key, is_parameter, key not in module._non_persistent_buffers_set, _full_name(block, path, key))
        for path, module in block.named_modules()
        for is_parameter, held in ((True, module._parameters), (False, module._buffers))
        for key, value in held.items()
        if value is not None
    ]
    return _Recipe(block.requires_grad_(False).eval(), shapes, tuple(folds), tuple(slots))


def _full_name(block: Block, path: str, *key: str) -> str:
    """Return the model's name of a module at `path` in the block, or of a tensor in it."""
    _, step, *below = path.split(".")
    return ".".join([*filter(None, [block.paths[int(step)]]), *below, *key])


def _copy_module(module: nn.Module) -> nn.Module:
    """Copy a module so that it can get other weights; `deepcopy` takes 50 times as long."""
    copied = object.__new__(type(module))
    vars(copied).update(
        {key: value.copy() if isinstance(value, dict) else value for key, value in vars(module).items()}
    )
    vars(copied)["_modules"] = {key: child and _copy_module(child) for key, child in module._modules.items()}
    return copied


def _prepare(tensor: Tensor, numerics: Numerics, *, will_be_packed: bool) -> Tensor:
    """Return the tensor on the device, in the precision and, unless packing brings its own, the layout of its use."""
    dtype = numerics.dtype if tensor.is_floating_point() else tensor.dtype
    keeps_layout = will_be_packed or tensor.dim() != 4
    memory_format = torch.preserve_format if keeps_layout else numerics.memory_format
    return tensor.detach().to(numerics.device, dtype, memory_format=memory_format, copy=True)


def _watch_convolutions(
    architecture: str, image_size: int, index: int
) -> tuple[list[tuple[str, str]], dict[str, tuple[int, int]]]:
    """Return each convolution whose output a batch norm takes with that norm, and each one's input size, by path.

    Runs the block without values and watches which tensor goes where. Only torch's own layers count, called once: what
    libraries derive from them also pads, standardises or activates. Nothing else may take the convolution's output.
    """
    # On the meta device, batch norms and pooling import torch's compiler, which takes a second; so does moving from it.
    block = block_skeleton(architecture, index)
    block.load({name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in block.tensors().items()})
    uses, calls = _Uses(), Counter[str]()
    pairs: list[tuple[str, str]] = []
    image_sizes: dict[str, tuple[int, int]] = {}

    def watch(path: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[path] += 1
        if isinstance(module, nn.Conv2d):
            uses.made_by[id(output)] = (output, path)  # the tensor is kept so that no other gets its id
            image_sizes[path] = (inputs[0].shape[2], inputs[0].shape[3])
        elif id(inputs[0]) in uses.made_by:
            pairs.append((uses.made_by[id(inputs[0])][1], path))

    for path, module in block.named_modules():
        if type(module) is nn.Conv2d or (type(module) is nn.BatchNorm2d and module.track_running_stats):
            module.register_forward_hook(partial(watch, path))
    above = (
        block_shapes(architecture, image_size)[index - 1].output_shape
        if index
        else item_shape(architecture, image_size)
    )
    with torch.no_grad(), uses:
        block(torch.zeros(1, *above, dtype=torch.float32 if index or len(above) > 1 else torch.int64))
    alone = [(conv, norm) for conv, norm in pairs if uses.num_uses[conv] == calls[conv] == calls[norm] == 1]
    return alone, image_sizes


class _Uses(TorchFunctionMode):
    """Counts which functions take what convolutions gave."""

    def __init__(self) -> None:
        super().__init__()
        self.made_by: dict[int, tuple[Tensor, str]] = {}
        self.num_uses = Counter[str]()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **dict(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in leaves(result)):
            for tensor in leaves((args, dict(kwargs or {}))):
                if id(tensor) in self.made_by:
                    self.num_uses[self.made_by[id(tensor)][1]] += 1
        return result
