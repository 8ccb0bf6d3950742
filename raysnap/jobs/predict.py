"""Use a stored model: its transform for images, its predictions for files of items, and its metrics on a dataset."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from raysnap.datasets.dataset import Dataset, Item
from raysnap.datasets.image_file import read_image, resize
from raysnap.datasets.layout.suffixes import Kind, suffixes_of
from raysnap.datasets.resizing import crop_start
from raysnap.datasets.text.text_file import read_text
from raysnap.datasets.text.tokenizer import PaddedTokenizer
from raysnap.errors import DataError, UsageError
from raysnap.humanize import plural, suggest
from raysnap.models.architecture import parse
from raysnap.models.families.family import family_of
from raysnap.store.manifest import Manifest
from raysnap.store.preprocessing import AnyPreprocessing, Preprocessing, TextPreprocessing
from raysnap.store.store import Store
from raysnap.system import num_cpus
from raysnap.training.evaluation import count_confusion, macro_f1

BATCH_SIZE = 64
MAX_CLASSES_SHOWN = 5

Transform = Callable[[Image.Image | Path | str], Tensor]
"""Takes an image, or the path of one, and returns the model's input, float32 `[3, image_size, image_size]`."""


@dataclass(frozen=True)
class Predictions:
    """What a model predicts for some images or texts.

    >>> found = raysnap.predict("store", "base", "data/shapes-shape-a/test")
    >>> print(found.to_csv().splitlines()[0])
    file,class,probability of 0,probability of 1,probability of 2,probability of 3

    Attributes:
        classes: the model's classes in label order; numbers where the store doesn't know their names.
        files: the items, in the order asked for.
        probabilities_NC: the probability of each class for each item, float64.
        bad: items that could not be read, each with the reason; they are in no other attribute.
    """

    classes: tuple[str, ...]
    files: tuple[Path, ...]
    probabilities_NC: np.ndarray
    bad: tuple[str, ...] = ()

    @property
    def labels(self) -> list[str]:
        """The most probable class of each item."""
        return [self.classes[index] for index in self.probabilities_NC.argmax(axis=1).tolist()]

    def to_csv(self, root: Path | None = None) -> str:
        """Return a line per item: its file (below `root`, where given), its class, each class's probability."""
        written = io.StringIO()
        table = csv.writer(written, lineterminator="\n")
        table.writerow(["file", "class", *(f"probability of {name}" for name in self.classes)])
        for file, label, row in zip(self.files, self.labels, self.probabilities_NC.tolist(), strict=True):
            shown = file.relative_to(root) if root is not None and file.is_relative_to(root) else file
            table.writerow([shown.as_posix(), label, *(f"{probability:.6f}" for probability in row)])
        return written.getvalue()


def transform_of(model: Manifest | AnyPreprocessing) -> Transform:
    """Return how a snapshot's model sees images: what turns one into its input, as in training and search.

    >>> store = raysnap.Store.open("store")
    >>> transform = raysnap.transform_of(store.manifest("base"))
    >>> image = raysnap.open_dataset("shapes-shape-a", "data").image_paths[0]
    >>> store.load_model("base")(transform(image)[None]).shape
    torch.Size([1, 4])

    Raises:
        UsageError: the model sees texts.
    """
    preprocessing = model.preprocessing if isinstance(model, Manifest) else model
    if isinstance(preprocessing, TextPreprocessing):
        raise UsageError("transform_of: expected a model that sees images, found one that sees texts; use predict()")
    mean_311 = torch.tensor(preprocessing.mean).view(3, 1, 1)
    std_311 = torch.tensor(preprocessing.std).view(3, 1, 1)
    edge = preprocessing.image_size

    def transform(image: Image.Image | Path | str) -> Tensor:
        opened = image.convert("RGB") if isinstance(image, Image.Image) else read_image(Path(image))
        resized = resize(opened, preprocessing.resizing)
        left, top = (crop_start(length, edge, preprocessing.crop_rounding) for length in resized.size)
        pixels_HW3 = np.array(resized.crop((left, top, left + edge, top + edge)))
        pixels_3HW = torch.from_numpy(pixels_HW3.transpose(2, 0, 1).copy())
        return (pixels_3HW.float() / 255 - mean_311) / std_311

    return transform


def predict(store: Store | Path | str, name_or_id: str, images: Path | str | Sequence[Path]) -> Predictions:
    """Return what a stored model predicts for images or texts: files, or all that are in a folder or below it.

    >>> found = raysnap.predict("store", "base", "data/shapes-shape-a/test")
    >>> found.probabilities_NC.shape, len(found.labels)
    ((8, 4), 8)

    Raises:
        SnapshotNotFound: there is no such model.
        DataError: there are no items of the model's kind, or none that can be read.
    """
    store = store if isinstance(store, Store) else Store.open(Path(store))
    manifest = store.manifest(name_or_id)
    kind: Kind = "texts" if isinstance(manifest.preprocessing, TextPreprocessing) else "images"
    files = items_in(Path(images), kind) if isinstance(images, str | Path) else list(images)
    model = store.load_model(manifest.id)
    family = family_of(parse(manifest.architecture))
    read = _reading(_reader(store, manifest.preprocessing))
    rows, good, bad = [], [], []
    with torch.inference_mode(), ThreadPoolExecutor(num_cpus()) as pool:
        for batch in _batches(files):
            inputs = []
            for file, found in zip(batch, pool.map(read, batch), strict=True):
                if isinstance(found, str):
                    bad.append(found)
                else:
                    inputs.append(found)
                    good.append(file)
            if inputs:
                rows.append(family.run(model, torch.stack(inputs)).double().softmax(dim=1).numpy())
    if not good:
        raise DataError(f"expected {kind} that can be read, found none of {plural(len(files), 'file')}: {bad[0]}")
    return Predictions(_classes_of(manifest), tuple(good), np.concatenate(rows), tuple(bad))


def evaluate(
    store: Store | Path | str, name_or_id: str, dataset: Dataset, split: str = "test"
) -> tuple[Predictions, dict[str, float]]:
    """Return what a stored model predicts for a split of a labelled dataset, and its metrics there.

    The model's classes are matched with the dataset's by name.

    Raises:
        DataError: the dataset has no such split, or classes that the model doesn't know.
    """
    store = store if isinstance(store, Store) else Store.open(Path(store))
    items = dataset.splits.get(split)
    if not items:
        raise DataError(
            f"dataset {dataset.root}: expected a {split} split to evaluate on, found {', '.join(dataset.splits)}"
        )
    labels = _labels_of(store.manifest(name_or_id), dataset, items)
    found = predict(store, name_or_id, [item.path for item in items])
    label_of = {item.path: label for item, label in zip(items, labels, strict=True)}
    targets_N = torch.tensor([label_of[file] for file in found.files])
    return found, _metrics(torch.from_numpy(found.probabilities_NC), targets_N)


def _metrics(probabilities_NC: Tensor, targets_N: Tensor) -> dict[str, float]:
    num_classes = probabilities_NC.shape[1]
    top = probabilities_NC.topk(min(5, num_classes), dim=1).indices == targets_N[:, None]
    likelihood_N = probabilities_NC[torch.arange(len(targets_N)), targets_N].clamp_min(1e-300)
    return {
        "accuracy": top[:, 0].double().mean().item(),
        "top5_accuracy": top.any(dim=1).double().mean().item(),
        "macro_f1": macro_f1(count_confusion(targets_N, probabilities_NC.argmax(dim=1), num_classes)),
        "loss": -likelihood_N.log().mean().item(),
    }


def items_in(folder: Path, kind: Kind) -> list[Path]:
    """Return the images or texts in a folder and in folders below it, sorted; a single file is itself.

    Raises:
        DataError: there are none.
    """
    if folder.is_file():
        return [folder]
    suffixes = suffixes_of(kind)
    hidden = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in suffixes and path.is_file())
    found = [path for path in hidden if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not found:
        raise DataError(f"{folder}: expected {kind} ({', '.join(sorted(suffixes))}), found none")
    return found


def _reader(store: Store, preprocessing: AnyPreprocessing) -> Callable[[Path], Tensor]:
    """Return what reads a file as the model's input, as in training and search."""
    if isinstance(preprocessing, Preprocessing):
        return transform_of(preprocessing)
    content = store.read_tokenizer(preprocessing.tokenizer.digest)
    tokenize = PaddedTokenizer(content, preprocessing.max_length, preprocessing.padding)
    return lambda file: tokenize([read_text(file)])[0]


def _reading(transform: Callable[[Path], Tensor]) -> Callable[[Path], Tensor | str]:
    def read(file: Path) -> Tensor | str:
        try:
            return transform(file)
        except DataError as error:
            return str(error)

    return read


def _batches(files: Sequence[Path]) -> Iterator[Sequence[Path]]:
    for start in range(0, len(files), BATCH_SIZE):
        yield files[start : start + BATCH_SIZE]


def _classes_of(manifest: Manifest) -> tuple[str, ...]:
    """Return the names of a model's classes; numbers where the store doesn't know them all."""
    known = manifest.dataset.classes if manifest.dataset else ()
    return known if len(known) == manifest.num_classes else tuple(map(str, range(manifest.num_classes)))


def _labels_of(manifest: Manifest, dataset: Dataset, items: Sequence[Item]) -> list[int]:
    classes = _classes_of(manifest)
    position_of = {name: position for position, name in enumerate(classes)}
    unknown = sorted({dataset.classes[item.label] for item in items} - position_of.keys())
    if unknown:
        known = ", ".join(classes[:MAX_CLASSES_SHOWN]) + (", …" if len(classes) > MAX_CLASSES_SHOWN else "")
        raise UsageError(
            f"dataset {dataset.root}: expected only classes of the model {manifest.id[:12]} ({known}), found "
            f"{unknown[0]!r}{suggest(unknown[0], classes)}"
        )
    return [position_of[dataset.classes[item.label]] for item in items]
