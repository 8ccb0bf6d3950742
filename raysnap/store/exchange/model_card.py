"""The model card that is written beside an exported snapshot."""

from __future__ import annotations

from raysnap.models.architecture import HF, TIMM, Architecture, package_of, parse
from raysnap.models.checkpoints.folders import SAFETENSORS_SUFFIX
from raysnap.models.families.family import item_shape, loader_of
from raysnap.store.manifest import Manifest
from raysnap.store.preprocessing import Preprocessing

CARD_NAME = "README.md"
LOCAL_FOLDER = "local-dir:"
"""What timm calls folders by."""

CARD_MARK = "<!-- model card written by raysnap -->"


def model_card(
    manifest: Manifest, lineage: list[Manifest], names: list[str], export_name: str, *, is_folder: bool = False
) -> str:
    """Return the README of an exported snapshot: what it is, its origin, its metrics and how to load it.

    Args:
        manifest: the snapshot's.
        lineage: the snapshots that it was fine-tuned from.
        names: what it is called in its store.
        export_name: the name of the exported file or folder.
        is_folder: whether it is a folder in the form of the model's library.
    """
    dataset = manifest.dataset
    family = package_of(parse(manifest.architecture).family)
    lines = [
        CARD_MARK,
        f"# {_code(names[0] if names else manifest.id[:12])}",
        "",
        "| | |",
        "| --- | --- |",
        f"| architecture | {_code(manifest.architecture)} ({family}), {manifest.num_classes} classes |",
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
        *_loading_code(manifest, export_name, is_folder=is_folder),
        "```",
    ]
    if dataset and dataset.classes:
        lines += ["", "## Classes", "", *[f"{index}. {_code(name)}" for index, name in enumerate(dataset.classes)]]
    return "\n".join(lines) + "\n"


def is_card_of(text: str, export_name: str) -> bool:
    """Return whether a text is the card of an exported file or folder of this name."""
    code = text.partition("```python\n")[2].partition("```")[0]
    return CARD_MARK in text and any(repr(prefix + export_name) in code for prefix in ("", LOCAL_FOLDER))


def _loading_code(manifest: Manifest, name: str, *, is_folder: bool) -> list[str]:
    architecture = parse(manifest.architecture)
    if architecture.family == TIMM:
        lines = _timm_code(architecture, manifest.num_classes, name, is_folder=is_folder)
    elif architecture.family == HF:
        lines = _hf_code(architecture, manifest.num_classes, name, is_folder=is_folder)
    else:
        lines = [
            _import_of_loader(name),
            "from torchvision.models import get_model",
            "",
            f"model = get_model({manifest.architecture!r}, weights=None, num_classes={manifest.num_classes})",
            f"model.load_state_dict({_load(name)}, strict=True)",
        ]
    return [*lines, "model.eval()"]


def _timm_code(architecture: Architecture, num_classes: int, name: str, *, is_folder: bool) -> list[str]:
    if is_folder:
        return [
            "import timm",
            "",
            f"model = timm.create_model({LOCAL_FOLDER + name!r}, pretrained=True)",
            "transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))",
        ]
    options = {"num_classes": num_classes, **architecture.options, "checkpoint_path": name}
    arguments = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return [
        "import timm",
        "",
        f"model = timm.create_model({architecture.name!r}, {arguments})",
    ]


def _hf_code(architecture: Architecture, num_classes: int, name: str, *, is_folder: bool) -> list[str]:
    loader, is_text = loader_of(str(architecture), is_folder=is_folder), len(item_shape(str(architecture))) == 1
    if is_folder:
        variable, reader = ("tokenizer", "AutoTokenizer") if is_text else ("processor", "AutoImageProcessor")
        return [
            f"from transformers import {', '.join(sorted((reader, loader)))}",
            "",
            f"model = {loader}.from_pretrained({name!r})",
            f"{variable} = {reader}.from_pretrained({name!r})",
        ]
    options = f", **{architecture.options!r}" if architecture.options else ""
    return [
        _import_of_loader(name),
        f"from transformers import AutoConfig, {loader}",
        "",
        f"config = AutoConfig.for_model({architecture.name!r}, num_labels={num_classes}{options})",
        f"model = {loader}.from_pretrained(None, config=config, state_dict={_load(name)})",
    ]


def _import_of_loader(file_name: str) -> str:
    return "from safetensors.torch import load_file" if file_name.endswith(SAFETENSORS_SUFFIX) else "import torch"


def _input(manifest: Manifest) -> str:
    how = manifest.preprocessing
    return f"RGB, {how.text}" if isinstance(how, Preprocessing) else f"{how.text}, which is tokenizer.json"


def _load(file_name: str) -> str:
    if file_name.endswith(SAFETENSORS_SUFFIX):
        return f"load_file({file_name!r})"
    return f"torch.load({file_name!r}, weights_only=True)"


def _describe(manifest: Manifest) -> str:
    on = f", trained on {_code(manifest.dataset.name)}" if manifest.dataset else ""
    return f"{_code(manifest.architecture)} {_code(manifest.id[:12])}{on}"


def _or_unknown(value: int | None) -> str:
    return "unknown" if value is None else str(value)


def _code(value: object) -> str:
    """Return any text as Markdown code on one line, so that no name can become markup."""
    text = "".join(character if character.isprintable() else " " for character in str(value)).replace("`", "'")
    return f"`{text.replace('|', '/')}`"
