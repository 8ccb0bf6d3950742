"""Compare an architecture's blocks with its library's own model: outputs, tensors, and what is trained."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor, nn

from raysnap.models import blocks
from raysnap.models.architecture import parse
from raysnap.models.block import Block
from raysnap.models.block_shape import HEAD
from raysnap.models.families import family
from raysnap.models.families.weightless import build_weightless
from raysnap.training.freezing import StartModel

NUM_CLASSES = 7


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes:
        num_blocks: stem, body and head.
        image_size: the size of the images; None is the architecture's own.
        difference: the largest between the blocks' output and the model's, over the largest of the model's.
        spread: how far the model's outputs for two items are from each other, over the largest.
        faults: what else is wrong, in words.
    """

    num_blocks: int
    image_size: int | None
    difference: float
    spread: float
    faults: tuple[str, ...]


class Pool:
    """Random weights of any size in little memory: tensors of one scale are views of one buffer, at many offsets."""

    def __init__(self) -> None:
        self._buffers: dict[int, Tensor] = {}

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return the tensor of this name, with a variance that keeps activations in bounds."""
        generator = torch.Generator().manual_seed(crc32(name.encode()))
        if len(shape) < 2:
            return torch.rand(shape, generator=generator) + 0.5
        power = round(math.log2(math.prod(shape[1:])) / 2)
        offset = crc32(name.encode()) % 1009
        needed = math.prod(shape) + 1009
        if power not in self._buffers or self._buffers[power].numel() < needed:
            fresh = torch.Generator().manual_seed(power)
            self._buffers[power] = torch.randn(needed, generator=fresh) * 2.0**-power
        return self._buffers[power][offset : offset + math.prod(shape)].view(shape)


def state_dict_of(architecture: str, num_classes: int = NUM_CLASSES) -> dict[str, Tensor]:
    """Return tensors for all of a model, of which none is trivial; buffers of integers are the library's own."""
    pool = Pool()
    parsed = parse(architecture)
    library = family.family_of(parsed)
    model = build_weightless(lambda: library.make(parsed, num_classes), keeps_buffers=True)
    stored = library.stored_names(model)
    return {
        stored.get(name, name): pool.tensor(name, tuple(tensor.shape)) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }


@torch.no_grad()
def compare(architecture: str, *image_sizes: int | None, num_items: int = 2) -> Comparison:
    """Compose an architecture's blocks of random weights and compare with the library's own model in eval mode.

    Of several sizes, the first that the model takes is used; without one its own.
    """
    tensors = state_dict_of(architecture)
    model = family.build(architecture, NUM_CLASSES, tensors)
    image_size, x, expected = _run(architecture, model, image_sizes or (None,), num_items)
    split = blocks.split_state_dict(architecture, tensors)
    trainable = {family.stored_names(architecture).get(name, name) for name, _ in model.named_parameters()}
    faults = _faults_of_parts(split, set(tensors)) + _faults_of_freezing(architecture, split, trainable)
    del model
    for index, (name, part) in enumerate(split):
        block = blocks.build_block(architecture, index, part)
        before = x.clone()
        given, x = x, block(x)
        if not torch.equal(given, before):
            faults.append(f"block {name} changes its input")
        if name == HEAD and tuple(x.shape) != (num_items, NUM_CLASSES):
            faults.append(f"the head gives {tuple(x.shape)}")
    largest = float(expected.abs().max())
    if not math.isfinite(largest):
        faults.append("outputs are not finite")
    spread = float((expected[0] - expected[1]).abs().max()) / largest
    difference = float((x - expected).abs().max()) / largest
    return Comparison(len(split), image_size, difference, spread, tuple(faults))


def _run(
    architecture: str, model: nn.Module, image_sizes: tuple[int | None, ...], num_items: int
) -> tuple[int | None, Tensor, Tensor]:
    """Return the first size that the model takes, its input and its output."""
    run = family.family_of(parse(architecture)).run
    for image_size in image_sizes[:-1]:
        x = items(architecture, num_items, image_size)
        with contextlib.suppress(Exception):  # most models reject small images, each in its way
            if image_size is not None:
                family.check_image_size(architecture, image_size)
            return image_size, x, run(model, x.clone())
    x = items(architecture, num_items, image_sizes[-1])
    return image_sizes[-1], x, run(model, x.clone())


def items(architecture: str, num_items: int, image_size: int | None = None) -> Tensor:
    """Return random pixels, or random tokens of which the last few of the second text are padding."""
    shape = family.item_shape(architecture, image_size)
    generator = torch.Generator().manual_seed(0)
    if len(shape) > 1:
        return torch.randn(num_items, *shape, generator=generator)
    tokens = torch.randint(5, 30, (num_items, *shape), generator=generator)
    from raysnap.models.families.hf import text_facts  # the family that has texts

    tokens[1, -shape[0] // 4 :] = text_facts(parse(architecture))["padding"]
    return tokens


def _faults_of_parts(split: list[tuple[str, dict[str, Tensor]]], expected: set[str]) -> list[str]:
    """Return what is wrong with how the tensors are divided: each must be in one block, and freezing follows blocks."""
    faults = []
    found = [name for _, part in split for name in part]
    if sorted(found) != sorted(expected):
        faults.append("not every tensor is in exactly one block")
    names = [name for name, _ in split]
    if len(set(names)) < len(names) or names[0] != "stem" or names[-1] != HEAD:
        faults.append("blocks are misnamed")
    return faults


def _faults_of_freezing(
    architecture: str, split: list[tuple[str, dict[str, Tensor]]], trainable: set[str]
) -> list[str]:
    """Return what is wrong with what is frozen at each retrain index from 1 to that of all blocks but the stem.

    Trained are the library's parameters of the last blocks, but for those that its forward in eval mode never takes.
    """
    model = blocks.build_model(architecture, [part for _, part in split])
    parts = list(blocks.blocks_of(model))
    names = [dict(_parameter_names(part)) for part in parts]
    idle = [set(part.tensors()) - set(named.values()) for part, named in zip(parts, names, strict=True)]
    for retrain_index in range(1, len(parts) - 1):
        start = StartModel(model, len(parts) - 1 - retrain_index, [])
        start.freeze()
        trained = {name for named in names for one, name in named.items() if one.requires_grad}
        last = slice(start.num_frozen, None)
        expected = {name for _, part in split[last] for name in part if name in trainable} - set().union(*idle[last])
        if trained != expected:
            return [f"r = {retrain_index} trains {sorted(trained ^ expected)[:3]} or doesn't, against its blocks"]
        if any(module.training for part in parts[: start.num_frozen] for module in part.modules()):
            return [f"r = {retrain_index} leaves a frozen module in training mode"]
    return []


def _parameter_names(block: Block) -> Iterator[tuple[nn.Parameter, str]]:
    for path, step in zip(block.paths, block.steps, strict=True):
        for key, parameter in step.named_parameters():
            name = f"{path}.{key}" if path else key
            yield parameter, block.stored_names.get(name, name)


def train_last(architecture: str, retrain_index: int, image_size: int | None = None) -> tuple[set[str], set[str]]:
    """Train the last blocks for a step as fine-tunes do, and return the names of the tensors that changed and may."""
    tensors = state_dict_of(architecture)
    split = blocks.split_state_dict(architecture, tensors)
    own = [{name: tensor.clone() for name, tensor in part.items()} for _, part in split]
    model = blocks.build_model(architecture, own)
    num_frozen = len(model) - 1 - retrain_index
    frozen, trained = model[:num_frozen].requires_grad_(False).eval(), model[num_frozen:].train()
    parameters = list(trained.parameters())
    x = items(architecture, 4, image_size)
    with torch.no_grad():
        x = frozen(x)
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    nn.functional.cross_entropy(trained(x), torch.arange(4) % NUM_CLASSES).backward()
    optimizer.step()
    after = {name: tensor for block in blocks.blocks_of(model) for name, tensor in block.tensors().items()}
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, tensors[name])}
    return changed, {name for _, part in split[num_frozen:] for name in part}
