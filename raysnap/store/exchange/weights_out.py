"""Weights out of the store: files and folders that the libraries of their models read, each with a model card."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from raysnap.atomic import plain_disk_errors, replacing
from raysnap.config.folders import local_path
from raysnap.datasets.text.tokenizer_file import FILE_NAME, SETTINGS_NAME, settings_of
from raysnap.errors import WeightsError
from raysnap.models.architecture import TIMM, TORCHVISION, package_of, parse
from raysnap.models.checkpoints.folders import (
    CONFIG_FILE,
    FOLDER_WEIGHTS,
    SAFETENSORS_SUFFIX,
    TORCH_SUFFIXES,
)
from raysnap.models.families.family import config_document, folder_options
from raysnap.models.tensor_bytes import encode
from raysnap.store.exchange.model_card import CARD_NAME, is_card_of, model_card
from raysnap.store.manifest import Manifest
from raysnap.store.preprocessing import (
    PROCESSOR_FILE,
    TextPreprocessing,
    of_processor,
    of_timm,
    to_processor,
    to_timm,
)
from raysnap.store.store import Store


@dataclass(frozen=True)
class Export:
    """The files that an export wrote.

    Attributes:
        weights_path: the file of tensors.
        card_path: the model card.
        num_bytes: the length of the file of tensors.
        remarks: what the files can't say of the model, a line each.
    """

    weights_path: Path
    card_path: Path
    num_bytes: int
    remarks: tuple[str, ...] = ()


def export_snapshot(store: Store, name_or_id: str, to: Path | str, *, overwrite: bool = False) -> Export:
    """Write a snapshot as the library of its model reads it, and a model card beside it.

    >>> export = raysnap.export_snapshot(raysnap.Store.open("store"), "base", "exported/base.safetensors")
    >>> str(export.weights_path), str(export.card_path)
    ('exported/base.safetensors', 'exported/README.md')

    A file, `.safetensors` or `.pth`, is a plain state dict. A folder, for models of timm and transformers, has the
    configuration as well, and how the model sees images. The card says which line loads it.

    Files appear whole or not at all. The card is README.md; if that exists and is not the card of an export of this
    name, it is left alone and the card is named after the weights.

    Args:
        overwrite: whether to replace files, or a text of the card's name, that are there already.

    Raises:
        SnapshotNotFound: there is no such snapshot.
        BlockDamaged: a block is missing or damaged; nothing is written.
        WeightsError: `to` has another suffix, is there already or can't be written.
    """
    to = local_path(to)
    manifest = store.manifest(name_or_id)
    is_folder = _is_folder(to, parse(manifest.architecture).family)
    weights_path = to / FOLDER_WEIGHTS if is_folder else to
    card_path = _card_path(weights_path, to.name)
    documents, remarks = _documents(manifest) if is_folder else ({}, ())
    if isinstance(how := manifest.preprocessing, TextPreprocessing):
        documents[FILE_NAME] = content = store.read_tokenizer(how.tokenizer.digest)
        if is_folder:
            settings = settings_of(content, padding=how.padding, max_length=how.max_length)
            documents |= _as_json({SETTINGS_NAME: settings})
    for path in (weights_path, card_path, *(weights_path.parent / name for name in documents)):
        if not overwrite and path.exists() and not _is_card_of(path, to.name):
            raise WeightsError(
                f"{path}: expected no such file yet, found one; choose another name, or replace it with --overwrite"
            )
    state_dict = store.read_state_dict(manifest.id)
    with _writing(weights_path) as file:
        if weights_path.suffix == SAFETENSORS_SUFFIX:
            for chunk in encode(state_dict, metadata={"format": "pt", "architecture": manifest.architecture}):
                file.write(chunk)
        else:
            with plain_disk_errors():
                torch.save(state_dict, file)
    names = store.names_of(manifest.id)
    card = model_card(manifest, store.lineage(manifest), names, to.name, is_folder=is_folder)
    documents[card_path.name] = card.encode()
    for name, content in documents.items():
        with _writing(weights_path.parent / name) as file:
            file.write(content)
    return Export(weights_path, card_path, weights_path.stat().st_size, remarks)


def _is_folder(to: Path, family: str) -> bool:
    """Return whether an export to this path is a folder of a library's own form.

    Raises:
        WeightsError: it is neither that nor a file of weights.
    """
    if to.suffix in (SAFETENSORS_SUFFIX, *TORCH_SUFFIXES) and not to.is_dir():
        return False
    if family == TORCHVISION:
        raise WeightsError(f"{to}: expected a file called .safetensors or .pth, found {to.suffix or 'no suffix'!r}")
    if to.suffix and not to.is_dir() and not to.suffix[1:].isdigit():
        raise WeightsError(f"{to}: expected a folder, or a file called .safetensors or .pth, found {to.suffix!r}")
    return True


def _documents(manifest: Manifest) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Return the files of a library's folder beside the weights, and what they can't say."""
    architecture, own = parse(manifest.architecture), manifest.preprocessing
    classes = manifest.dataset.classes if manifest.dataset else ()
    classes = classes if len(classes) == manifest.num_classes else ()
    if isinstance(own, TextPreprocessing):
        return _as_json({CONFIG_FILE: config_document(manifest.architecture, manifest.num_classes, classes)}), ()
    if architecture.family == TIMM:
        said = to_timm(own)
        config = {"architecture": architecture.name, "num_classes": manifest.num_classes}
        options = folder_options(manifest.architecture)
        config |= {"model_args": options} if options else {}
        config |= {"label_names": list(classes)} if classes else {}
        documents = {CONFIG_FILE: config | {"pretrained_cfg": said | {"num_classes": manifest.num_classes}}}
        again = of_timm(said)
    else:
        documents = {CONFIG_FILE: config_document(manifest.architecture, manifest.num_classes, classes)}
        documents[PROCESSOR_FILE] = to_processor(own)
        again = of_processor(documents[PROCESSOR_FILE])
    remarks: tuple[str, ...] = ()
    if own.has_uneven_crops and again.crop_rounding != own.crop_rounding:
        remarks = (
            f"{package_of(architecture.family)} crops images whose borders differ by a pixel one pixel beside where "
            "this model was trained to see them",
        )
    return _as_json(documents), remarks


def _as_json(documents: Mapping[str, object]) -> dict[str, bytes]:
    return {
        name: f"{json.dumps(document, indent=2, sort_keys=True)}\n".encode() for name, document in documents.items()
    }


def _card_path(weights_path: Path, name: str) -> Path:
    """Return where the card of an export goes: not where there is a text that isn't the card of one of this name."""
    path = weights_path.with_name(CARD_NAME)
    is_free = not path.exists() or _is_card_of(path, name)
    return path if is_free else weights_path.with_name(f"{weights_path.name}.md")


def _is_card_of(path: Path, name: str) -> bool:
    try:
        return path.suffix == ".md" and is_card_of(path.read_text(encoding="utf-8", errors="replace"), name)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise WeightsError(f"{path}: can't be read: {error.strerror}") from None


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path`, creating its folder if needed; raise WeightsError if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            yield file
    except OSError as error:
        raise WeightsError(f"{path}: can't be written: {error.strerror or error}") from error
