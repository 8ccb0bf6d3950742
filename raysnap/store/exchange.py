"""Weights in and out of the store: files that other tools wrote, and plain torchvision state dicts for them to read.

Nothing but tensors is ever unpickled: `.pth` files go through `torch.load(weights_only=True)`, or through a reader that
makes nothing but tensors where there are foreign classes in them; safetensors files through the strict parser of
`tensor_bytes`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import torch
from pydantic import ValidationError
from torch import Tensor

from raysnap.atomic import plain_disk_errors, replacing
from raysnap.config.folders import local_path
from raysnap.datasets.resizing import Interpolation, ResizeMode
from raysnap.datasets.text.tokenizer_file import FILE_NAME, find_tokenizer, read_tokenizer
from raysnap.errors import DataError, StoreError, WeightsError
from raysnap.models.architecture import shown
from raysnap.models.block_facts import TextFacts, text_facts, weights_inputs
from raysnap.models.blocks import num_classes_of
from raysnap.models.checkpoints.folders import SAFETENSORS_SUFFIX, TORCH_SUFFIXES
from raysnap.models.tensor_bytes import block_digest, encode
from raysnap.models.weight_files import Weights, read_weights
from raysnap.store.catalog import ABSENT
from raysnap.store.manifest import DatasetRecord, Manifest, check_ref_name, snapshot_id
from raysnap.store.model_card import CARD_NAME, is_card_of, model_card
from raysnap.store.preprocessing import (
    AnyPreprocessing,
    Channels,
    Preprocessing,
    TextPreprocessing,
    beside,
    tokenizer_object,
)
from raysnap.store.store import SnapshotWrite, Store

logger = logging.getLogger(__name__)

ASSUMED_PX = 224  # what most published weights of torchvision were trained with


@dataclass(frozen=True)
class Export:
    """The files that an export wrote."""

    weights_path: Path
    card_path: Path
    num_bytes: int


def import_snapshot(
    store: Store,
    path: Path | str,
    architecture: str | None = None,
    name: str | None = None,
    base: str | None = None,
    dataset: DatasetRecord | None = None,
    preprocessing: AnyPreprocessing | None = None,
    metrics: Mapping[str, float] | None = None,
    entry: str | None = None,
) -> SnapshotWrite:
    """Store the weights in a file or folder as a snapshot; they may have any number of classes.

    >>> store = raysnap.Store.open("store")
    >>> path = raysnap.export_snapshot(store, "base", "copied/base.pth").weights_path
    >>> copy = raysnap.Store.open("copy", create=True)
    >>> raysnap.import_snapshot(copy, path, "mobilenet_v3_small", name="base").new_blocks
    14

    The architecture is found by the tensors' names and shapes where it is not given.

    Given its `base`, its retrain index follows from the blocks: how many below the head differ from the base's.

    Of a file that has several sets of weights, such as averaged ones beside the raw ones, `entry` says which; by
    default it is the raw ones.

    The tokenizer of a model of texts is taken from its folder, or is its base's.

    Raises:
        WeightsError: the file can't be read, doesn't fit the architecture or contains NaN or infinity.
        StoreError: `name` already refers to another snapshot, or the store can't be written.
    """
    weights = read_weights(local_path(path), architecture, entry)
    if weights.remark and entry is None:
        logger.warning("%s: %s", path, weights.remark)
    if preprocessing is None and (facts := text_facts(weights.architecture)) is not None:
        text = TextInput.find(local_path(path), facts, None if base is None else store.manifest(base))
        preprocessing = text.put_into(store)
    return add_weights(store, weights, name, base, dataset, preprocessing, metrics)


def add_weights(
    store: Store,
    weights: Weights,
    name: str | None = None,
    base: str | None = None,
    dataset: DatasetRecord | None = None,
    preprocessing: AnyPreprocessing | None = None,
    metrics: Mapping[str, float] | None = None,
) -> SnapshotWrite:
    """Store weights that were read from a file, as `import_snapshot` does."""
    if name is not None:
        check_ref_name(name)
    architecture, blocks = weights.architecture, weights.blocks
    retrain_index = None if base is None else _retrain_index(store.manifest(base), architecture, blocks)
    if name is not None and (current := store.refs().get(name)) is not None:
        found = snapshot_id(architecture, [(block_name, block_digest(block)) for block_name, block in blocks])
        if current != found:
            raise StoreError(
                f"{store.path}: the name {name!r} already refers to snapshot {current[:12]}; choose another name"
            )
    written = store.put_snapshot(
        architecture=architecture,
        blocks=blocks,
        num_classes=num_classes_of(blocks[-1][1]),
        base=base,
        retrain_index=retrain_index,
        dataset=dataset,
        preprocessing=preprocessing,
        metrics=metrics,
    )
    if name is not None and store.refs().get(name) != written.manifest.id:
        store.set_ref(name, written.manifest.id, expected=ABSENT)
    return written


@dataclass(frozen=True)
class TextInput:
    """How imported weights see texts, and their tokenizer's bytes where it is not in the store yet."""

    preprocessing: TextPreprocessing
    content: bytes | None

    @classmethod
    def find(
        cls, path: Path, facts: TextFacts, base: Manifest | None = None, tokenizer: Path | None = None
    ) -> TextInput:
        """Return how the weights at a path see texts: as a tokenizer says that is given, beside them or their base's.

        Raises:
            WeightsError: there is no tokenizer, or it isn't that of these weights.
        """
        try:
            found = find_tokenizer(tokenizer or (path if path.is_dir() else path.parent))
            if found is None and base is not None and isinstance(base.preprocessing, TextPreprocessing):
                return cls(base.preprocessing, None)
            if found is None:
                raise DataError(
                    f"{tokenizer or path}: expected a {FILE_NAME} with the weights, found none; give --tokenizer FILE"
                )
            read = read_tokenizer(found, padding=facts.padding, vocab_size=facts.vocab_size, longest=facts.longest)
        except DataError as error:
            raise WeightsError(str(error)) from None
        entry, _ = tokenizer_object(read.content)
        how = TextPreprocessing(tokenizer=entry, max_length=read.max_length, padding=facts.padding)
        return cls(how, read.content)

    def put_into(self, store: Store) -> TextPreprocessing:
        """Store the tokenizer, if it is new, and return how the weights see texts."""
        if self.content is not None:
            store.put_tokenizer(self.content)
        return self.preprocessing


@dataclass(frozen=True)
class InputOptions:
    """What is said of how imported weights see images; what is None follows from files beside them, or the base.

    Attributes:
        weights: torchvision's name of weights that see images in the same way.
        image_size: edge of the crop in pixels; alone, it keeps the crop's share of the resized image. Of texts, the
            number of tokens.
        resize: how images are resized, and to which size.
        interpolation: with which filter.
        mean: of pixels in 0..1, per channel.
        std: of pixels in 0..1, per channel.
        tokenizer: of weights that see texts, a `tokenizer.json` or the folder that it is in.
    """

    weights: str | None = None
    image_size: int | None = None
    resize: tuple[ResizeMode, int] | None = None
    interpolation: Interpolation | None = None
    mean: Channels | None = None
    std: Channels | None = None
    tokenizer: Path | None = None

    def text_input(self, path: Path, facts: TextFacts, base: Manifest | None) -> TextInput:
        """Return how the weights at this path see texts.

        Raises:
            WeightsError: an option is one of images, or there is no tokenizer of these weights.
        """
        if any(one is not None for one in (self.weights, self.resize, self.interpolation, self.mean, self.std)):
            raise WeightsError(f"{path}: expected no options of images, found weights that see texts; leave them out")
        found = TextInput.find(path, facts, base, self.tokenizer)
        if self.image_size is None:
            return found
        if facts.longest is not None and self.image_size > facts.longest:
            raise WeightsError(
                f"--image-size {self.image_size}: expected at most the {facts.longest} tokens that the weights take"
            )
        return replace(found, preprocessing=found.preprocessing.sized(self.image_size))

    def preprocessing(self, path: Path, architecture: str, base: Manifest | None) -> tuple[Preprocessing, list[str]]:
        """Return how the weights at this path see images, and lines on what was assumed or changed.

        Raises:
            WeightsError: `weights` is no name of the architecture's, or a file in the folder says what raysnap doesn't
                do.
        """
        own, source = self._own(path, architecture, base)
        try:
            used = own.with_changes(
                image_size=self.image_size,
                resize=self.resize,
                interpolation=self.interpolation,
                mean=self.mean,
                std=self.std,
            )
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            raise WeightsError(f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
        remarks = []
        if source is None:
            why = "as --image-size was not given" if base is None else "as its base does"
            if self.image_size is None and self.resize is None:
                remarks.append(f"assumed to take images of {used.image_size} px, {why}")
        elif used != own:
            remarks.append(f"takes images as {source} says ({own.text}), but: {used.text}")
        return used, remarks

    def _own(self, path: Path, architecture: str, base: Manifest | None) -> tuple[Preprocessing, str | None]:
        """Return how the weights see images before any option changes that, and which name or file says so."""
        if self.weights is not None:
            known = weights_inputs(architecture)
            if self.weights not in known:
                names = ", ".join(name for name in known if "." not in name) or "none"
                raise WeightsError(
                    f"--weights {self.weights}: expected weights of {shown(architecture)} ({names}), found another name"
                )
            return Preprocessing(**known[self.weights]), self.weights
        found = beside(path) if self.resize is None else None
        if found is not None:
            return found
        if base is not None and isinstance(base.preprocessing, Preprocessing):
            return base.preprocessing, None
        return Preprocessing.cropping(ASSUMED_PX), None


@dataclass(frozen=True)
class Added:
    """Weights that were stored as a snapshot, or were there already.

    Attributes:
        path: the file or folder that they are from.
        name: what the snapshot was named; None where it was given no name.
        remarks: what to know of it, a line each.
    """

    path: Path
    name: str | None
    weights: Weights
    written: SnapshotWrite
    remarks: tuple[str, ...]


def add_path(
    store_dir: Path,
    path: Path,
    *,
    architecture: str | None = None,
    name: str | None = None,
    suggested_name: str | None = None,
    base: str | None = None,
    dataset: DatasetRecord | None = None,
    metrics: Mapping[str, float] | None = None,
    entry: str | None = None,
    options: InputOptions = InputOptions(),
) -> Added:
    """Store the weights in a file or folder as a snapshot, with how they see images.

    The store is created only once the weights were read, unless they have a base in it.

    Args:
        name: for the snapshot; refused where another one has it.
        suggested_name: for the snapshot where it is free, else with a number.

    Raises:
        RaysnapError: the weights can't be read or stored; a file that doesn't fit leaves no new store behind.
    """
    weights = read_weights(path, architecture, entry)
    base_manifest = Store.open(store_dir).manifest(base) if base is not None else None
    preprocessing: AnyPreprocessing
    if (facts := text_facts(weights.architecture)) is not None:
        text, remarks = options.text_input(path, facts, base_manifest), list[str]()
        store = Store.open(store_dir, create=base is None)
        preprocessing = text.put_into(store)
    else:
        preprocessing, remarks = options.preprocessing(path, weights.architecture, base_manifest)
        store = Store.open(store_dir, create=base is None)
    written = add_weights(store, weights, name, base, dataset, preprocessing, metrics)
    if suggested_name is not None:
        name = store.give_name(suggested_name, written.manifest.id)
    stored = written.manifest.preprocessing
    if stored != preprocessing:
        remarks = [
            f"already stored, for {_sizes(stored)} ({stored.text}); only a snapshot that is removed "
            "first can get another input"
        ]
    if weights.headless:
        remarks.append("it has no head; one of a single class was drawn at random")
    return Added(path, name, weights, written, tuple(remarks))


def _sizes(how: AnyPreprocessing) -> str:
    return f"{how.max_length} tokens" if isinstance(how, TextPreprocessing) else f"images of {how.image_size} px"


def _retrain_index(base: Manifest, architecture: str, blocks: list[tuple[str, dict[str, Tensor]]]) -> int | None:
    """Return the number of blocks below the head from the first that differs from the base's; None if all differ."""
    if base.architecture != architecture:
        raise WeightsError(f"base {base.id[:12]}: expected the architecture {architecture}, found {base.architecture}")
    pairs = zip(base.blocks, blocks, strict=True)
    num_equal = len(list(itertools.takewhile(lambda pair: pair[0].digest == block_digest(pair[1][1]), pairs)))
    return max(0, len(blocks) - 1 - num_equal) if num_equal else None


def export_snapshot(store: Store, name_or_id: str, to: Path | str, *, overwrite: bool = False) -> Export:
    """Write a snapshot as a plain torchvision state dict, `.safetensors` or `.pth`, and a model card beside it.

    >>> export = raysnap.export_snapshot(raysnap.Store.open("store"), "base", "exported/base.safetensors")
    >>> str(export.weights_path), str(export.card_path)
    ('exported/base.safetensors', 'exported/README.md')

    Files appear whole or not at all. The card is README.md; if that exists and is not the card of a file of this name,
    it is left alone and the card is named after the weights.

    Args:
        overwrite: whether to replace a file of weights, or a text of the card's name, that is there already.

    Raises:
        SnapshotNotFound: there is no such snapshot.
        BlockDamaged: a block is missing or damaged; nothing is written.
        WeightsError: `to` has another suffix, is there already or can't be written.
    """
    to = local_path(to)
    if to.suffix != SAFETENSORS_SUFFIX and to.suffix not in TORCH_SUFFIXES:
        raise WeightsError(f"{to}: expected a file called .safetensors or .pth, found {to.suffix or 'no suffix'!r}")
    manifest = store.manifest(name_or_id)
    card_path = _card_path(to)
    how = manifest.preprocessing
    tokenizer = how.tokenizer if isinstance(how, TextPreprocessing) else None
    for path in (to, card_path, *([to.with_name(FILE_NAME)] if tokenizer else [])):
        if not overwrite and path.exists() and not _is_card_of(path, to.name):
            raise WeightsError(
                f"{path}: expected no such file yet, found one; choose another name, or replace it with --overwrite"
            )
    state_dict = store.read_state_dict(manifest.id)
    with _writing(to) as file:
        if to.suffix == SAFETENSORS_SUFFIX:
            for chunk in encode(state_dict, metadata={"format": "pt", "architecture": manifest.architecture}):
                file.write(chunk)
        else:
            with plain_disk_errors():
                torch.save(state_dict, file)
    if tokenizer is not None:
        with _writing(to.with_name(FILE_NAME)) as file:
            file.write(store.read_tokenizer(tokenizer.digest))
    with _writing(card_path) as file:
        file.write(model_card(manifest, store.lineage(manifest), store.names_of(manifest.id), to.name).encode())
    return Export(to, card_path, to.stat().st_size)


def _card_path(to: Path) -> Path:
    """Return where the card of an export goes: not where there is a text that isn't the card of a file of this name."""
    path = to.with_name(CARD_NAME)
    return path if not path.exists() or _is_card_of(path, to.name) else to.with_name(f"{to.name}.md")


def _is_card_of(path: Path, file_name: str) -> bool:
    try:
        return path.suffix == ".md" and is_card_of(path.read_text(encoding="utf-8", errors="replace"), file_name)
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
