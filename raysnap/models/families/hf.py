"""Models of Hugging Face's transformers that classify images or texts, by type and configuration."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from raysnap.canonical_json import canonical_json, parse_json
from raysnap.errors import ArchitectureError
from raysnap.models import lean_torchvision  # noqa: F401 - transformers imports torchvision, here without torch's compiler
from raysnap.models.architecture import HF, Architecture, architecture
from raysnap.models.block import Block
from raysnap.models.families.recording import carry

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers
    from huggingface_hub.errors import StrictDataclassError
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.models.auto import modeling_auto

_VISION = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
_TEXT = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
# Their forwards need more than pixels, or are another library's.
_NEEDS_MORE = ("shieldgemma2", "siglip2", "timm_wrapper")
_NOT_OF_A_NETWORK = frozenset(
    ("_name_or_path", "architectures", "id2label", "label2id", "model_type", "num_labels", "transformers_version")
)
# What a config.json says that changes no weight and no output of eval mode in the form that raysnap takes.
_NOT_OF_THE_WEIGHTS = _NOT_OF_A_NETWORK | {
    "dtype",
    "problem_type",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "tokenizer_class",
    "torch_dtype",
    "use_cache",
}
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


def described(config: Mapping[str, Any]) -> Architecture | None:
    """Return the architecture that a `config.json` of transformers says; None for models that raysnap doesn't know.

    Its configuration is the least that builds the same: values that differ from the defaults and follow from no others.

    Raises:
        ArchitectureError: transformers can't build it from these values alone.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in known():
        return None
    kind: Any = transformers.CONFIG_MAPPING[name]
    default = _plain(kind())
    found = {key: value for key, value in config.items() if key in default}
    wanted = _built(name, found)
    options = _difference(wanted, default)
    for key in sorted(options):
        fewer = {other: value for other, value in options.items() if other != key}
        if _built(name, fewer) == wanted:
            options = fewer
    if (built := _built(name, options)) != wanted:
        odd = next(key for key in wanted if built.get(key) != wanted[key])
        raise ArchitectureError(
            f"model type {name!r}: expected a configuration that builds itself, found another {odd}"
        )
    return architecture(HF, name, options)


def config_document(architecture: Architecture, num_classes: int, classes: Sequence[str] = ()) -> dict[str, Any]:
    """Return the `config.json` that transformers writes for an architecture, with the names of its classes if given."""
    config = _config(architecture, num_classes)
    if classes:
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: index for index, name in enumerate(classes)}
    config.architectures = [_class_of(architecture).__name__]
    document: dict[str, Any] = parse_json(config.to_json_string().encode())
    return document


def loader_of(architecture: Architecture, *, is_folder: bool) -> str:
    """Return the name of the class of transformers whose `from_pretrained` takes an exported folder, or tensors."""
    if not is_folder:
        return _class_of(architecture).__name__
    return "AutoModelForSequenceClassification" if is_text(architecture) else "AutoModelForImageClassification"


def base_prefix(architecture: Architecture) -> str:
    """Return what the names of the model without a head have before them in the one with a head."""
    prefix = getattr(_class_of(architecture), "base_model_prefix", "")
    return f"{prefix}." if prefix else ""


def _class_of(architecture: Architecture) -> type[nn.Module]:
    names = (_TEXT if is_text(architecture) else _VISION)[architecture.name]
    return cast(type[nn.Module], getattr(transformers, names if isinstance(names, str) else names[0]))


def _built(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return _plain(_config(architecture(HF, name, {}), 2, options))


def _plain(config: Any) -> dict[str, Any]:
    """Return what a configuration says of the network, as JSON has it."""
    document: dict[str, Any] = parse_json(canonical_json(config.to_dict()))
    return _without_the_rest(document)


def _without_the_rest(document: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_the_rest(value) if isinstance(value, dict) and "model_type" in value else value
        for key, value in document.items()
        if key not in _NOT_OF_THE_WEIGHTS
    }


def _difference(wanted: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that differ from the defaults, of configurations within it those that differ there."""
    found = {}
    for key, value in wanted.items():
        usual = default.get(key)
        if value != usual or key not in default:
            is_inner = isinstance(value, dict) and isinstance(usual, dict) and key.endswith("_config")
            found[key] = _difference(value, usual or {}) if is_inner else value
    return found


def stored_names(model: nn.Module) -> dict[str, str]:
    """Return the names under which transformers saves tensors, by their names in the model, where those differ.

    Modules are renamed from version to version, files are not.
    """
    marks = {name: torch.empty(index, device="meta") for index, name in enumerate(model.state_dict())}
    stored = revert_weight_conversion(cast(Any, model), dict(marks))
    names = list(marks)
    if sorted(mark.numel() for mark in stored.values()) != list(range(len(names))):
        return {}  # it saves tensors that are parts of the model's, or made of several
    return {names[mark.numel()]: name for name, mark in stored.items() if names[mark.numel()] != name}


def make(architecture: Architecture, num_classes: int) -> nn.Module:
    """Return the library's own model with random weights."""
    kind = _class_of(architecture)
    config = _config(architecture, num_classes)
    try:
        return kind(config)
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


def _config(architecture: Architecture, num_classes: int, options: Mapping[str, Any] | None = None) -> Any:
    options = architecture.options if options is None else options
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
