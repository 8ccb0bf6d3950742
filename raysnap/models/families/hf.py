"""Models of Hugging Face's transformers that classify images or texts, by type and configuration."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from raysnap.errors import ArchitectureError
from raysnap.models import lean_torchvision  # noqa: F401 - transformers imports torchvision, here without torch's compiler
from raysnap.models.architecture import Architecture
from raysnap.models.block import Block
from raysnap.models.families.recording import carry

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto import modeling_auto

_VISION = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
_TEXT = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
# Their forwards need more than pixels, or are another library's.
_NEEDS_MORE = ("shieldgemma2", "siglip2", "timm_wrapper")
_NOT_OF_A_NETWORK = frozenset(
    ("_name_or_path", "architectures", "id2label", "label2id", "model_type", "num_labels", "transformers_version")
)
_DEFAULT_IMAGE_SIZE = 224
TEXT_LENGTH = 64
"""The number of tokens for which a text model's blocks are recorded."""


@cache
def known() -> tuple[str, ...]:
    """Return the sorted model types that classify images or texts."""
    return tuple(sorted((_VISION.keys() | _TEXT.keys()) - set(_NEEDS_MORE)))


def is_text(architecture: Architecture) -> bool:
    """Return whether the model's items are tokens of text, not pixels."""
    return architecture.name not in _VISION


def make(architecture: Architecture, num_classes: int) -> nn.Module:
    """Return the library's own model with random weights."""
    names = (_TEXT if is_text(architecture) else _VISION)[architecture.name]
    kind = getattr(transformers, names if isinstance(names, str) else names[0])
    config = _config(architecture, num_classes)
    try:
        return cast(nn.Module, kind(config))
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
        raise ArchitectureError(
            f"architecture {architecture.shown!r}: {kind.__name__} rejects this configuration: {error}"
        ) from None


def item_shape(architecture: Architecture, image_size: int | None) -> tuple[int, ...]:
    """Return the shape of one item of the model's input, by default of the size that it was designed for."""
    if is_text(architecture):
        longest = (text_facts(architecture) or {}).get("longest")
        return (image_size or min(TEXT_LENGTH, longest or TEXT_LENGTH),)
    config = _config(architecture, 2)
    config = getattr(config, "vision_config", config)
    edge = image_size or getattr(config, "image_size", None) or _DEFAULT_IMAGE_SIZE
    edge = edge[-1] if isinstance(edge, list | tuple) else edge
    return (getattr(config, "num_channels", 3), edge, edge)


def run(model: nn.Module, items: Tensor) -> Tensor:
    """Return the logits that a model gives for items: pixels, or tokens of text of which some are padding."""
    if items.is_floating_point():
        return cast(Tensor, model(pixel_values=items).logits)
    mask = carry(items != _padding(model.config))
    return cast(Tensor, model(input_ids=items, attention_mask=mask.to(torch.int64)).logits)


def text_facts(architecture: Architecture) -> dict[str, int | None] | None:
    """Return what a model of texts takes: its `padding`, its `vocab_size` and its `longest` text; None for images."""
    if not is_text(architecture):
        return None
    config = _config(architecture, 2).get_text_config()
    padding, longest = _padding(config), getattr(config, "max_position_embeddings", None)
    if longest is not None and padding == 1:
        longest -= 2  # RoBERTa and its kin count positions from 2
    return {"padding": padding, "vocab_size": config.vocab_size, "longest": longest}


def _padding(config: Any) -> int:
    padding = getattr(config, "pad_token_id", None)
    return 0 if padding is None else padding


def cut_by_hand(model: nn.Module) -> tuple[Block, ...] | None:  # noqa: ARG001
    """Return None: all are cut at waists."""
    return None


def _config(architecture: Architecture, num_classes: int) -> Any:
    options = architecture.options
    if wrong := sorted(_NOT_OF_A_NETWORK & options.keys()):
        raise ArchitectureError(f"architecture {architecture.shown!r}: {wrong[0]} can't be part of its configuration")
    try:
        kind: Any = transformers.CONFIG_MAPPING[architecture.name]
        config = kind(**options, num_labels=num_classes)
    except (TypeError, ValueError, LookupError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise ArchitectureError(
            f"architecture {architecture.shown!r}: transformers rejects this configuration: {reason}"
        ) from None
    if is_text(architecture):
        config._attn_implementation = "eager"  # masks of other kinds are left out of batches without padding
    return config
