"""An architecture as a sequence of blocks: stem, body blocks, head; their composition is the library's own forward.

Whatever comes between the last body block and the head's linear layer (pooling, a final norm, flatten) belongs to the
last body block, so its output is the features, and the head is what a new dataset replaces. Blocks are cut from a
weightless model on the meta device; only the blocks that are built get tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from raysnap.errors import ArchitectureError, WeightsError
from raysnap.models.architecture import FAMILIES
from raysnap.models.block import Block, Shape, Tensors, difference
from raysnap.models.block_shape import HEAD, BlockShape
from raysnap.models.families import family
from raysnap.models.kept_bytes import kept_bytes

# The buffers of models that contain integers.
INTEGER_BUFFERS = ("num_batches_tracked", "relative_position_index")


def list_architectures(name: str | None = None) -> list[str]:
    """Return the sorted names of the architectures of one family, or of all whose packages are installed."""
    return [known for each in ([name] if name else FAMILIES) for known in family.known_names(each)]


def block_names(architecture: str) -> tuple[str, ...]:
    """Return the names of the architecture's blocks from stem to head.

    Raises:
        ArchitectureError: the architecture is unknown or can't be split.
    """
    return tuple(block.name for block in family.skeleton(architecture))


def count_body_parameters(architecture: str) -> int:
    """Return the number of parameters of all blocks below the head."""
    return sum(parameter.numel() for block in family.skeleton(architecture)[:-1] for parameter in block.parameters())


def feature_dim(architecture: str) -> int:
    """Return the width D of the features `[N, D]` that the head takes."""
    return family.feature_dim(family.skeleton(architecture)[-1])


def build_block(architecture: str, index: int, tensors: Mapping[str, Tensor]) -> Block:
    """Build block `index` in eval mode around `tensors`, without copying them; they give a head its width.

    Raises:
        WeightsError: the tensors aren't this block's.
    """
    block = block_skeleton(architecture, index)
    if block.name == HEAD:
        _resize_head(block, num_classes_of(tensors))
    block.load(tensors)
    return block


def block_skeleton(architecture: str, index: int) -> Block:
    """Return a new copy of block `index` in eval mode on the meta device, without weights."""
    return copy.deepcopy(family.skeleton(architecture)[index])


def build_model(architecture: str, tensors: Sequence[Mapping[str, Tensor]]) -> nn.Sequential:
    """Build all blocks of a model in eval mode as a sequence; its forward equals the library's own."""
    return nn.Sequential(*(build_block(architecture, index, block) for index, block in enumerate(tensors)))


def blocks_of(model: nn.Sequential) -> list[Block]:
    """Return the blocks of a model, or of a part of one, from the front."""
    return [cast(Block, block) for block in model]


def in_float32(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors with floats of any width as float32, in which blocks are prepared and trained.

    Of some types, such as those of one byte, torch can do nothing but convert them.

    Raises:
        WeightsError: a weight is of another kind of numbers.
    """
    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() or name.endswith(INTEGER_BUFFERS)):
            raise WeightsError(f"{name}: expected floating-point numbers, found {tensor.dtype}")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def split_state_dict(architecture: str, state_dict: Mapping[str, Tensor]) -> list[tuple[str, Tensors]]:
    """Split a library's state dict into blocks from stem to head, under the full names; any head width is allowed.

    Raises:
        WeightsError: tensors are missing, unknown or of another shape.
    """
    check_fit(architecture, {name: tuple(value.shape) for name, value in state_dict.items()})
    names = [(block.name, block.tensors()) for block in family.skeleton(architecture)]
    return [(block_name, {name: state_dict[name] for name in tensors}) for block_name, tensors in names]


def check_fit(architecture: str, found: Mapping[str, Shape], label: str = "") -> None:
    """Check that tensors of these shapes are the architecture's; any head width is allowed.

    Args:
        label: where in a file they are, for the message.

    Raises:
        WeightsError: tensors are missing, unknown or of another shape.
    """
    expected = shapes_of(architecture)
    head = family.skeleton(architecture)[-1].tensors()
    if all(name in found and found[name][1:] == tuple(value.shape[1:]) for name, value in head.items()):
        width = _head_width(found[name] for name in head)
        expected |= {name: (width, *value.shape[1:]) for name, value in head.items()}
    if expected != found:
        where = f" in {label!r}" if label else ""
        raise WeightsError(f"weights for {architecture}{where}: {difference(expected, found)}")


def shapes_of(architecture: str) -> dict[str, Shape]:
    """Return the shapes of the architecture's tensors by name, with a head of 1000 classes."""
    blocks = family.skeleton(architecture)
    return {name: tuple(value.shape) for block in blocks for name, value in block.tensors().items()}


def random_tensors(architecture: str, num_classes: int, seed: int) -> list[tuple[str, Tensors]]:
    """Initialise every block's tensors as the library does; equal seeds give equal tensors."""
    family.skeleton(architecture)
    return split_state_dict(architecture, family.random_state_dict(architecture, num_classes, seed))


def random_head(architecture: str, num_classes: int, seed: int) -> Tensors:
    """Initialise a head for `num_classes` classes, as torch's own layers do."""
    block = block_skeleton(architecture, -1)
    _resize_head(block, num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block.to_empty(device="cpu")
        for module in block.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.reset_parameters()
    return block.tensors()


def as_features(output: Tensor) -> Tensor:
    """Return what the last block below a head gives as features `[N, D]`: maps and tokens are averaged over places."""
    if output.dim() == 2:
        return output
    return output.mean(1) if output.dim() == 3 else output.flatten(2).mean(2)


def num_classes_of(head_tensors: Mapping[str, Tensor]) -> int:
    """Return the number of classes that a head's tensors are for."""
    return _head_width(tuple(value.shape) for value in head_tensors.values())


def _head_width(shapes: Iterable[Shape]) -> int:
    widths = {shape[0] if shape else 0 for shape in shapes}
    if len(widths) != 1 or min(widths) < 1:
        raise WeightsError(f"block {HEAD}: expected a weight and a bias of one width, found widths {sorted(widths)}")
    return widths.pop()


def measure_blocks(architecture: str, image_size: int) -> tuple[BlockShape, ...]:
    """Measure output shape, FLOPs, bytes and kept bytes of every block for square images of `image_size` pixels.

    Raises:
        ArchitectureError: the architecture can't take images of that size.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports triton

    family.check_image_size(architecture, image_size)
    blocks = [copy.deepcopy(block).to("meta") for block in family.skeleton(architecture)]
    x = family.empty_items(architecture, 1, image_size)
    shapes = []
    for block in blocks:
        try:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                x = block(x)
        except (RuntimeError, AssertionError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ArchitectureError(
                f"{architecture} at image_size {image_size}: block {block.name}: {reason}"
            ) from None
        num_bytes = sum(value.numel() * value.element_size() for value in block.tensors().values())
        shapes.append((block.name, tuple(x.shape[1:]), counter.get_total_flops(), num_bytes))
    kept = kept_bytes(blocks, lambda num_items: family.empty_items(architecture, num_items, image_size))
    return tuple(BlockShape(*shape, num_bytes) for shape, num_bytes in zip(shapes, kept, strict=True))


def _resize_head(head: Block, num_classes: int) -> None:
    """Give the head's tensors, all of which have a row per class, so many rows."""
    for module in head.modules():
        for held in (module._parameters, module._buffers):
            for key, value in list(held.items()):
                if value is not None:
                    resized = torch.empty(num_classes, *value.shape[1:], device="meta")
                    setattr(module, key, nn.Parameter(resized) if isinstance(value, nn.Parameter) else resized)
        if isinstance(module, nn.Linear):
            module.out_features = num_classes
        elif isinstance(module, nn.Conv2d):
            module.out_channels = num_classes
