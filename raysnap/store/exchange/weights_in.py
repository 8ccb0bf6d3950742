"""Weights into the store: files and folders that other tools wrote, with how their models see their inputs.

Nothing but tensors is ever unpickled: `.pth` files go through `torch.load(weights_only=True)`, or through a reader that
makes nothing but tensors where there are foreign classes in them; safetensors files through the strict parser of
`tensor_bytes`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from raysnap.config.choices import Interpolation
from raysnap.config.folders import StorePath, local_path
from raysnap.datasets.resizing import ResizeMode
from raysnap.datasets.text.tokenizer_file import FILE_NAME, find_tokenizer, read_tokenizer
from raysnap.errors import DataError, SnapshotNotFound, StoreError, WeightsError
from raysnap.models.architecture import TORCHVISION, parse, shown
from raysnap.models.block_facts import TextFacts, text_facts, weights_inputs
from raysnap.models.blocks import num_classes_of
from raysnap.models.checkpoints.adapters import adapter_folder
from raysnap.models.checkpoints.folders import (
    CONFIG_FILE,
    class_names,
)
from raysnap.models.families.family import item_shape, timm_input
from raysnap.models.tensor_bytes import block_digest
from raysnap.models.weight_files import Weights, merge_adapter, read_weights
from raysnap.store.catalog import ABSENT
from raysnap.store.manifest import DatasetRecord, Manifest, check_ref_name, snapshot_id
from raysnap.store.preprocessing import (
    AnyPreprocessing,
    Channels,
    Preprocessing,
    TextPreprocessing,
    beside,
    of_timm,
    tokenizer_object,
)
from raysnap.store.store import SnapshotWrite, Store

logger = logging.getLogger(__name__)

ASSUMED_PX = 224  # what most published weights of torchvision were trained with


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
    default it is the raw ones. A LoRA adapter, a folder of peft's, is merged into its `base`.

    The tokenizer of a model of texts is taken from its folder, or is its base's.

    Raises:
        WeightsError: the file can't be read, doesn't fit the architecture or contains NaN or infinity.
        StoreError: `name` already refers to another snapshot, or the store can't be written.
    """
    weights = _read(store, local_path(path), architecture, entry, base)
    if weights.remark and entry is None:
        logger.warning("%s: %s", path, weights.remark)
    if preprocessing is None and (facts := text_facts(weights.architecture)) is not None:
        text = TextInput.find(local_path(path), facts, None if base is None else store.manifest(base))
        preprocessing = text.put_into(store)
    return add_weights(store, weights, name, base, dataset, preprocessing, metrics)


def _read(store: Store | None, path: Path, architecture: str | None, entry: str | None, base: str | None) -> Weights:
    """Return the weights at a path; an adapter is merged into its base, a snapshot or else a file or folder."""
    folder = adapter_folder(path)
    if folder is None:
        return read_weights(path, architecture, entry)
    if base is None:
        raise WeightsError(
            f"{path}: expected --base with a LoRA adapter, the snapshot or file that it was trained on, found none"
        )
    if store is not None:
        manifest = store.manifest(base)
        return merge_adapter(folder, manifest.architecture, store.read_state_dict(manifest.id))
    weights = read_weights(Path(base), architecture, entry)
    tensors = {name: tensor for _, block in weights.blocks for name, tensor in block.items()}
    return merge_adapter(folder, weights.architecture, tensors)


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
                remarks.append(f"assumed to take images so, {why}: {used.text}")
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
        if parse(architecture).family == TORCHVISION:
            return Preprocessing.cropping(ASSUMED_PX), None
        edge, said = item_shape(architecture)[-1], timm_input(architecture)
        with contextlib.suppress(WeightsError):  # some of timm's own see images in ways that raysnap doesn't
            if said is not None:
                return of_timm(said).sized(edge), None
        return Preprocessing.cropping(edge), None


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
    store_dir: StorePath,
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
        base: a snapshot in the store; for a LoRA adapter, a file or folder of weights will do.
        name: for the snapshot; refused where another one has it.
        suggested_name: for the snapshot where it is free, else with a number.

    Raises:
        RaysnapError: the weights can't be read or stored; a file that doesn't fit leaves no new store behind.
    """
    base_path = _base_path(store_dir, path, base)
    base_store = Store.open(store_dir) if base is not None and base_path is None else None
    weights = _read(base_store, path, architecture, entry, base)
    base = base if base_path is None else None
    base_manifest = base_store.manifest(base) if base_store is not None and base is not None else None
    origin, remarks, text = base_path or path, list[str](), None
    preprocessing: AnyPreprocessing
    if (facts := text_facts(weights.architecture)) is not None:
        text = options.text_input(origin, facts, base_manifest)
    else:
        preprocessing, remarks = options.preprocessing(origin, weights.architecture, base_manifest)
    classes = class_names(path)
    if len(classes) == num_classes_of(weights.blocks[-1][1]):
        if dataset is None:
            remarks.append(f"{CONFIG_FILE} names its {len(classes)} classes; --dataset NAME keeps them with it")
        elif not dataset.classes:
            dataset = dataset.model_copy(update={"classes": classes})
    store = Store.open(store_dir, create=base is None)
    if text is not None:
        preprocessing = text.put_into(store)
    written = add_weights(store, weights, name, base, dataset, preprocessing, metrics)
    if suggested_name is not None:
        name = store.give_name(suggested_name, written.manifest.id)
    stored = written.manifest.preprocessing
    if stored != preprocessing:
        remarks = [
            f"already stored, for {_sizes(stored)} ({stored.text}); only a snapshot that is removed "
            "first can get another input"
        ]
    return Added(path, name, weights, written, (*remarks, *weights.head_remarks))


def _base_path(store_dir: StorePath, path: Path, base: str | None) -> Path | None:
    """Return the file or folder that `base` is for the adapter at a path; None where it names a snapshot."""
    if base is None or adapter_folder(path) is None or not Path(base).exists():
        return None
    try:
        Store.open(store_dir).resolve(base)
    except (StoreError, SnapshotNotFound):
        return Path(base)
    return None


def _sizes(how: AnyPreprocessing) -> str:
    return f"{how.max_length} tokens" if isinstance(how, TextPreprocessing) else f"images of {how.image_size} px"


def _retrain_index(base: Manifest, architecture: str, blocks: list[tuple[str, dict[str, Tensor]]]) -> int | None:
    """Return the number of blocks below the head from the first that differs from the base's; None if all differ."""
    if base.architecture != architecture:
        raise WeightsError(f"base {base.id[:12]}: expected the architecture {architecture}, found {base.architecture}")
    pairs = zip(base.blocks, blocks, strict=True)
    num_equal = len(list(itertools.takewhile(lambda pair: pair[0].digest == block_digest(pair[1][1]), pairs)))
    return max(0, len(blocks) - 1 - num_equal) if num_equal else None
