"""The model card that is written beside an exported snapshot."""

from __future__ import annotations

from raysnap.models.checkpoints.folders import SAFETENSORS_SUFFIX
from raysnap.store.manifest import Manifest
from raysnap.store.preprocessing import Preprocessing

CARD_NAME = "README.md"
CARD_MARK = "<!-- model card written by raysnap -->"


def model_card(manifest: Manifest, lineage: list[Manifest], names: list[str], file_name: str) -> str:
    """Return the README of an exported snapshot: what it is, its origin, its metrics and how to load it."""
    dataset = manifest.dataset
    lines = [
        CARD_MARK,
        f"# {_code(names[0] if names else manifest.id[:12])}",
        "",
        "| | |",
        "| --- | --- |",
        f"| architecture | {_code(manifest.architecture)} (torchvision), {manifest.num_classes} classes |",
        f"| snapshot | {_code(manifest.id)} |",
        f"| trained on | {_code(dataset.name) if dataset else 'unknown'} |",
        f"| retrained blocks | {_or_unknown(manifest.retrain_index)} below the head, and the head |",
        f"| created | {manifest.created}, raysnap {_code(manifest.raysnap_version)} |",
        f"| input | {_input(manifest)} |",
        "",
        "## Lineage",
        "",
        *([f"1. fine-tuned from {_describe(base)}" for base in lineage] or ["No base is recorded."]),
        "",
        "## Metrics",
        "",
        *([f"- {_code(key)}: {value:.6g}" for key, value in sorted(manifest.metrics.items())] or ["None recorded."]),
        "",
        "## Training",
        "",
        *([f"- {_code(key)}: {_code(value)}" for key, value in sorted(manifest.train.items())] or ["Not recorded."]),
        "",
        "## How to load it",
        "",
        "```python",
        *_loading_code(manifest, file_name),
        "```",
    ]
    if dataset and dataset.classes:
        lines += ["", "## Classes", "", *[f"{index}. {_code(name)}" for index, name in enumerate(dataset.classes)]]
    return "\n".join(lines) + "\n"


def is_card_of(text: str, file_name: str) -> bool:
    """Return whether a text is the card of an exported file of this name."""
    return CARD_MARK in text and f"model.load_state_dict({_load(file_name)}, strict=True)\n" in text


def _input(manifest: Manifest) -> str:
    how = manifest.preprocessing
    return f"RGB, {how.text}" if isinstance(how, Preprocessing) else f"{how.text}, which is tokenizer.json"


def _load(file_name: str) -> str:
    if file_name.endswith(SAFETENSORS_SUFFIX):
        return f"load_file({file_name!r})"
    return f"torch.load({file_name!r}, weights_only=True)"


def _loading_code(manifest: Manifest, file_name: str) -> list[str]:
    is_safetensors = file_name.endswith(SAFETENSORS_SUFFIX)
    return [
        "from safetensors.torch import load_file" if is_safetensors else "import torch",
        "from torchvision.models import get_model",
        "",
        f"model = get_model({manifest.architecture!r}, weights=None, num_classes={manifest.num_classes})",
        f"model.load_state_dict({_load(file_name)}, strict=True)",
        "model.eval()",
    ]


def _describe(manifest: Manifest) -> str:
    on = f", trained on {_code(manifest.dataset.name)}" if manifest.dataset else ""
    return f"{_code(manifest.architecture)} {_code(manifest.id[:12])}{on}"


def _or_unknown(value: int | None) -> str:
    return "unknown" if value is None else str(value)


def _code(value: object) -> str:
    """Return any text as Markdown code on one line, so that no name can become markup."""
    text = "".join(character if character.isprintable() else " " for character in str(value)).replace("`", "'")
    return f"`{text.replace('|', '/')}`"
