"""An architecture as a sequence of blocks: stem, body blocks, head; their composition is torchvision's forward.

Whatever comes between the last body block and the head's linear layer (pooling, a final norm, flatten) belongs to the
last body block, so its output is the features, and the head is what a new dataset replaces. Blocks are cut from a
weightless model on the meta device; only the blocks that are built get tensors.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from raysnap.errors import ArchitectureError, WeightsError
from raysnap.humanize import suggest
from raysnap.models.block_shape import HEAD, STEM, BlockShape
from raysnap.models.kept_bytes import kept_bytes
from raysnap.models.lean_torchvision import models, ops

Steps: TypeAlias = Sequence[str | nn.Module]
"""What a block runs, in order: modules by their torchvision paths, and modules of our own."""

Tensors: TypeAlias = dict[str, Tensor]

Shape: TypeAlias = tuple[int, ...]

# The buffers of torchvision's models that contain integers.
INTEGER_BUFFERS = ("num_batches_tracked", "relative_position_index")


class Block(nn.Module):
    """Some of torchvision's modules run one after the other, under their torchvision names.

    Attributes:
        name: `stem`, `head`, or the torchvision path of the residual, MBConv or encoder block.
        paths: for each step the torchvision path of the module, `""` where it has no parameters or names them in full.
    """

    def __init__(self, name: str, steps: Sequence[tuple[str, nn.Module]]):
        super().__init__()
        self.name = name
        self.paths = tuple(path for path, _ in steps)
        self.steps = nn.ModuleList(module for _, module in steps)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x

    def tensors(self) -> Tensors:
        """Return parameters and buffers under torchvision's full names, detached, not copied."""
        return {
            (f"{path}.{key}" if path else key): value.detach()
            for path, step in zip(self.paths, self.steps, strict=True)
            for key, value in step.state_dict().items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Adopt `tensors` as the parameters and buffers, without copying them.

        Raises:
            WeightsError: a tensor is missing, unknown or of another shape.
        """
        expected = {name: tuple(value.shape) for name, value in self.tensors().items()}
        found = {name: tuple(value.shape) for name, value in tensors.items()}
        if expected != found:
            raise WeightsError(f"block {self.name}: {_difference(expected, found)}")
        for path, step in zip(self.paths, self.steps, strict=True):
            prefix = f"{path}." if path else ""
            step.load_state_dict({key: tensors[prefix + key] for key in step.state_dict()}, strict=True, assign=True)


class _VisionTransformerStem(nn.Module):
    """Patches to tokens, the class token and the position embedding, as in `VisionTransformer.forward`."""

    def __init__(self, model: models.VisionTransformer):
        super().__init__()
        self.conv_proj: nn.Module = model.conv_proj
        self.class_token: nn.Parameter = model.class_token
        self.encoder = _PositionEmbedding(model.encoder.pos_embedding, model.encoder.dropout)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.conv_proj(x).flatten(2).permute(0, 2, 1)
        expected = self.encoder.pos_embedding.shape[1]
        if tokens.shape[1] + 1 != expected:
            raise ArchitectureError(
                f"this vision transformer expects {expected - 1} patches, found {tokens.shape[1]} in images of "
                f"{x.shape[-2]}x{x.shape[-1]} px; use the image_size it was designed for (224 for vit_b, vit_l)"
            )
        embedded: Tensor = self.encoder(torch.cat([self.class_token.expand(x.shape[0], -1, -1), tokens], dim=1))
        return embedded


class _PositionEmbedding(nn.Module):
    """The position embedding and the dropout that begin torchvision's encoder, under the encoder's names."""

    def __init__(self, pos_embedding: nn.Parameter, dropout: nn.Module):
        super().__init__()
        self.pos_embedding = pos_embedding
        self.dropout = dropout

    def forward(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.dropout(tokens + self.pos_embedding)
        return embedded


class _ClassToken(nn.Module):
    """The first token of each item: `[N, T, D]` to `[N, D]`."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


def _children(model: nn.Module, path: str) -> list[str]:
    return [f"{path}.{name}" for name, _ in model.get_submodule(path).named_children()]


def _single_step_blocks(paths: Iterable[str]) -> list[list[str | nn.Module]]:
    return [[path] for path in paths]


def _resnet(model: nn.Module) -> list[Steps]:
    body = _single_step_blocks(path for stage in range(1, 5) for path in _children(model, f"layer{stage}"))
    body[-1] += ["avgpool", nn.Flatten(1)]
    return [["conv1", "bn1", "relu", "maxpool"], *body, ["fc"]]


def _mobilenet_v2(model: nn.Module) -> list[Steps]:
    stem, *body = _single_step_blocks(_children(model, "features"))
    body[-1] += [nn.AdaptiveAvgPool2d(1), nn.Flatten(1)]
    return [stem, *body, ["classifier.0", "classifier.1"]]


def _mobilenet_v3(model: nn.Module) -> list[Steps]:
    stem, *body = _single_step_blocks(_children(model, "features"))
    body[-1] += ["avgpool", nn.Flatten(1), "classifier.0", "classifier.1"]
    return [stem, *body, ["classifier.2", "classifier.3"]]


def _efficientnet(model: nn.Module) -> list[Steps]:
    stem, *stages, last = _children(model, "features")
    body = _single_step_blocks([*(path for stage in stages for path in _children(model, stage)), last])
    body[-1] += ["avgpool", nn.Flatten(1)]
    return [[stem], *body, ["classifier.0", "classifier.1"]]


def _regnet(model: nn.Module) -> list[Steps]:
    body = _single_step_blocks(path for stage in _children(model, "trunk_output") for path in _children(model, stage))
    body[-1] += ["avgpool", nn.Flatten(1)]
    return [["stem"], *body, ["fc"]]


def _vision_transformer(model: nn.Module) -> list[Steps]:
    body = _single_step_blocks(_children(model, "encoder.layers"))
    body[-1] += ["encoder.ln", _ClassToken()]
    return [[_VisionTransformerStem(model)], *body, _children(model, "heads")]


def _staged(model: nn.Module, tail: Steps, head: Steps) -> list[Steps]:
    """Split as Swin and ConvNeXt are built: stages with downsampling between them, which joins the block after it."""
    stem, *stages = _children(model, "features")
    body: list[list[str | nn.Module]] = []
    for stage, downsampling in zip(stages[::2], [None, *stages[1::2]], strict=True):
        blocks = _single_step_blocks(_children(model, stage))
        if downsampling:
            blocks[0].insert(0, downsampling)
        body += blocks
    body[-1] += tail
    return [[stem], *body, head]


def _swin(model: nn.Module) -> list[Steps]:
    return _staged(model, ["norm", ops.Permute([0, 3, 1, 2]), "avgpool", nn.Flatten(1)], ["head"])


def _convnext(model: nn.Module) -> list[Steps]:
    return _staged(model, ["avgpool", "classifier.0", "classifier.1"], ["classifier.2"])


_SPLITTERS: dict[type[nn.Module], Callable[[nn.Module], list[Steps]]] = {
    models.ResNet: _resnet,
    models.MobileNetV2: _mobilenet_v2,
    models.MobileNetV3: _mobilenet_v3,
    models.EfficientNet: _efficientnet,
    models.RegNet: _regnet,
    models.VisionTransformer: _vision_transformer,
    models.SwinTransformer: _swin,
    models.ConvNeXt: _convnext,
}


def list_architectures() -> list[str]:
    """Return the sorted names of all torchvision classification builders; not all of them can be split."""
    return sorted(models.list_models(module=models))


class Weightless(TorchFunctionMode):
    """Put parameters created inside on the meta device; tensors that RegNet and Swin compute shapes with stay real.

    Initialisers leave them alone: on the meta device they change nothing, but import torch's compiler.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        keywords = dict(kwargs or {})
        if func in (Tensor.normal_, Tensor.uniform_) and (initialised := next(iter(args))).is_meta:
            return initialised
        if func in (torch.empty, torch.zeros, torch.ones) and keywords.get("device") is None:
            keywords["device"] = "meta"
        return func(*args, **keywords)


@lru_cache(maxsize=32)
def _skeleton(architecture: str) -> tuple[Block, ...]:
    """Return the architecture's blocks on the meta device, with a head of 1000 classes, in eval mode."""
    known = list_architectures()
    if architecture not in known:
        hint = suggest(architecture, known) or "; torchvision.models.list_models() lists them"
        raise ArchitectureError(f"architecture {architecture!r}: torchvision has no such classification model{hint}")
    with Weightless(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = models.get_model(architecture, weights=None).to("meta").eval()
    splitter = _SPLITTERS.get(type(model))
    if splitter is None:
        raise ArchitectureError(
            f"architecture {architecture!r}: raysnap can't split a {type(model).__name__} into blocks; expected one of "
            + ", ".join(sorted(family.__name__ for family in _SPLITTERS))
        )
    cuts = splitter(model)
    names = [
        STEM,
        *(max((step for step in cut if isinstance(step, str)), key=lambda path: path.count(".")) for cut in cuts[1:-1]),
    ]
    return tuple(
        Block(name, [(step, model.get_submodule(step)) if isinstance(step, str) else ("", step) for step in cut])
        for name, cut in zip([*names, HEAD], cuts, strict=True)
    )


def block_names(architecture: str) -> tuple[str, ...]:
    """Return the names of the architecture's blocks from stem to head.

    Raises:
        ArchitectureError: torchvision has no such model, or it can't be split.
    """
    return tuple(block.name for block in _skeleton(architecture))


def count_body_parameters(architecture: str) -> int:
    """Return the number of parameters of all blocks below the head."""
    return sum(parameter.numel() for block in _skeleton(architecture)[:-1] for parameter in block.parameters())


def feature_dim(architecture: str) -> int:
    """Return the width D of the features `[N, D]` that the head takes."""
    return _linear(_skeleton(architecture)[-1]).in_features


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
    return copy.deepcopy(_skeleton(architecture)[index])


def build_model(architecture: str, tensors: Sequence[Mapping[str, Tensor]]) -> nn.Sequential:
    """Build all blocks of a model in eval mode as a sequence; its forward equals torchvision's."""
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
    """Split a torchvision state dict into blocks from stem to head, under the full names; any head width is allowed.

    Raises:
        WeightsError: tensors are missing, unknown or of another shape.
    """
    check_fit(architecture, {name: tuple(value.shape) for name, value in state_dict.items()})
    names = [(block.name, block.tensors()) for block in _skeleton(architecture)]
    return [(block_name, {name: state_dict[name] for name in tensors}) for block_name, tensors in names]


def check_fit(architecture: str, found: Mapping[str, Shape], label: str = "") -> None:
    """Check that tensors of these shapes are the architecture's; any head width is allowed.

    Args:
        label: where in a file they are, for the message.

    Raises:
        WeightsError: tensors are missing, unknown or of another shape.
    """
    expected = shapes_of(architecture)
    head = _skeleton(architecture)[-1].tensors()
    if all(name in found and found[name][1:] == tuple(value.shape[1:]) for name, value in head.items()):
        width = _head_width(found[name] for name in head)
        expected |= {name: (width, *value.shape[1:]) for name, value in head.items()}
    if expected != found:
        where = f" in {label!r}" if label else ""
        raise WeightsError(f"weights for {architecture}{where}: {_difference(expected, found)}")


def shapes_of(architecture: str) -> dict[str, Shape]:
    """Return the shapes of the architecture's tensors by name, with a head of 1000 classes."""
    blocks = _skeleton(architecture)
    return {name: tuple(value.shape) for block in blocks for name, value in block.tensors().items()}


def random_tensors(architecture: str, num_classes: int, seed: int) -> list[tuple[str, Tensors]]:
    """Initialise every block's tensors as torchvision does; equal seeds give equal tensors."""
    block_names(architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = models.get_model(architecture, weights=None, num_classes=num_classes)
    return split_state_dict(architecture, model.state_dict())


def random_head(architecture: str, num_classes: int, seed: int) -> Tensors:
    """Initialise a head for `num_classes` classes, as `nn.Linear` does."""
    block = block_skeleton(architecture, -1)
    _resize_head(block, num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block.to_empty(device="cpu")
        _linear(block).reset_parameters()
    return block.tensors()


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

    blocks = _skeleton(architecture)
    x = torch.empty(1, 3, image_size, image_size, device="meta")
    shapes = []
    for block in blocks:
        try:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                x = block(x)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ArchitectureError(
                f"{architecture} at image_size {image_size}: block {block.name}: {reason}"
            ) from None
        num_bytes = sum(value.numel() * value.element_size() for value in block.tensors().values())
        shapes.append((block.name, tuple(x.shape[1:]), counter.get_total_flops(), num_bytes))
    kept = kept_bytes(blocks, image_size)
    return tuple(BlockShape(*shape, num_bytes) for shape, num_bytes in zip(shapes, kept, strict=True))


def _linear(head: Block) -> nn.Linear:
    return next(step for step in head.steps if isinstance(step, nn.Linear))


def _resize_head(head: Block, num_classes: int) -> None:
    for index, step in enumerate(head.steps):
        if isinstance(step, nn.Linear):
            head.steps[index] = nn.Linear(step.in_features, num_classes, device="meta")


def _difference(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> str:
    """Describe the first few names or shapes in which two sets of tensors differ."""
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    if missing or unknown:
        parts = [
            f"{len(names)} {word} ({', '.join(names[:3])})"
            for names, word in ((missing, "missing"), (unknown, "unknown"))
            if names
        ]
        return f"expected {len(expected)} tensors, found {len(found)}: {'; '.join(parts)}"
    name = next(name for name in expected if expected[name] != found[name])
    return f"{name}: expected shape {expected[name]}, found {found[name]}"
