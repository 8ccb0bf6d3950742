"""Models of torchvision, by the names of its builders: those that matter most are cut by hand, the others at waists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from raysnap.errors import ArchitectureError
from raysnap.models.architecture import Architecture
from raysnap.models.block import Block
from raysnap.models.block_shape import HEAD, STEM
from raysnap.models.lean_torchvision import models, ops

_IMAGE_SIZES = {"inception_v3": 299}  # all others are fine with 224 px

Steps: TypeAlias = Sequence[str | nn.Module]
"""What a block runs, in order: modules by their torchvision paths, and modules of our own."""


@cache
def known() -> tuple[str, ...]:
    """Return the sorted names of all torchvision classification builders."""
    return tuple(sorted(models.list_models(module=models)))


def make(architecture: Architecture, num_classes: int) -> nn.Module:
    """Return torchvision's own model with random weights."""
    return cast(nn.Module, models.get_model(architecture.name, weights=None, num_classes=num_classes))


def item_shape(architecture: Architecture, image_size: int | None) -> tuple[int, ...]:
    """Return the shape of one item of the model's input, by default of the size that it was designed for."""
    edge = image_size or _IMAGE_SIZES.get(architecture.name, 224)
    return (3, edge, edge)


def run(model: nn.Module, items: Tensor) -> Tensor:
    """Return the logits that a model gives for items."""
    return cast(Tensor, model(items))


def cut_by_hand(model: nn.Module) -> tuple[Block, ...] | None:
    """Return the blocks of a model of a kind that is cut by hand."""
    splitter = _SPLITTERS.get(type(model))
    if splitter is None:
        return None
    cuts = splitter(model)
    names = [
        STEM,
        *(max((step for step in cut if isinstance(step, str)), key=lambda path: path.count(".")) for cut in cuts[1:-1]),
    ]
    return tuple(
        Block(name, [(step, model.get_submodule(step)) if isinstance(step, str) else ("", step) for step in cut])
        for name, cut in zip([*names, HEAD], cuts, strict=True)
    )


def stored_names(model: nn.Module) -> dict[str, str]:  # noqa: ARG001
    """Return nothing: tensors are saved under the names that they have in the model."""
    return {}


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
