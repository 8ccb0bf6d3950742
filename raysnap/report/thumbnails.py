"""Items inside a page, of datasets and single files: images as small JPEGs in data URIs, texts as their beginnings."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from pydantic import ValidationError

from raysnap.config.parts import ShapesConfig
from raysnap.datasets.contact_sheet import evenly_chosen, square_tile
from raysnap.datasets.dataset import Dataset, find_dataset, read_folder
from raysnap.datasets.image_file import for_each_image
from raysnap.datasets.layout.suffixes import TEXT_SUFFIXES, Kind
from raysnap.datasets.text.text_file import read_text
from raysnap.errors import DataError
from raysnap.runs.questions import short_dataset
from raysnap.runs.run import Run

logger = logging.getLogger(__name__)

NUM_PER_DATASET = 10
MAX_DATASETS = 8
JPEG_QUALITY = 82
MAX_CHARACTERS = 240


@dataclass(frozen=True)
class Picture:
    """What a page shows of an item: the data URI of an image, or some words of a text."""

    uri: str | None = None
    words: str | None = None


@dataclass(frozen=True)
class DatasetStrip:
    """Samples of a dataset: its counts per split, and the pictures of some classes' items, each with its class."""

    name: str
    num_classes: int
    kind: Kind
    num_items: dict[str, int]
    items: tuple[tuple[Picture, str], ...]


def pictures(paths: Sequence[Path]) -> list[Picture | None]:
    """Return what a page shows of each file: an image's central square, or a text's beginning.

    None for files that are missing or damaged.
    """
    return for_each_image(lambda index: _picture(paths[index]), range(len(paths)))


def dataset_strips(run: Run) -> list[DatasetStrip]:
    """Return samples of the datasets that the run used and that are still there, of at most `MAX_DATASETS`."""
    if not isinstance(run.config.get("data_dir"), str):
        return []  # a dataset of the same name elsewhere may be another one
    named = [trial.dataset for trial in run.trials] + [search.dataset for search in run.searches]
    found = []
    for name in list(dict.fromkeys(filter(None, named)))[:MAX_DATASETS]:
        dataset = _find(name, run)
        if dataset is not None:
            found.append(_strip(name, dataset))
    return [strip for strip in found if strip.items]


def _find(name: str, run: Run) -> Dataset | None:
    """Find the dataset at its path, or beside a run directory that was moved with it."""
    data_dir = Path(run.config["data_dir"])
    here = run.run_dir.resolve()
    try:
        shapes = ShapesConfig.model_validate(run.config["shapes"])
    except (KeyError, ValidationError):
        shapes = None
    for folder in (data_dir, here.parent / data_dir.name, here.parent.parent / data_dir.name):
        try:
            root = find_dataset(name, folder, shapes)
            if root is not None:
                return read_folder(root)
        except DataError as error:
            logger.debug("no pictures of %s: %s", name, error)
    return None


def _strip(name: str, dataset: Dataset) -> DatasetStrip:
    first = {item.label: item for item in reversed(dataset.splits["train"])}
    labels = evenly_chosen(len(dataset.classes), NUM_PER_DATASET)
    chosen = [first[label] for label in labels if label in first]
    others = [item for item in dataset.splits["train"] if item not in chosen]
    wanted = NUM_PER_DATASET - len(chosen)
    chosen += [others[index] for index in evenly_chosen(len(others), wanted)] if 1 < wanted <= len(others) else []
    chosen.sort(key=lambda item: item.label)
    shown = pictures([item.path for item in chosen])
    items = [(one, dataset.classes[item.label]) for one, item in zip(shown, chosen, strict=True) if one]
    counts = {split: len(items) for split, items in dataset.splits.items()}
    return DatasetStrip(short_dataset(name), len(dataset.classes), dataset.kind, counts, tuple(items))


def _picture(path: Path) -> Picture | None:
    if path.suffix.lower() in TEXT_SUFFIXES:
        try:
            return Picture(words=shorten(read_text(path), MAX_CHARACTERS, placeholder=" …"))
        except DataError:
            return None
    uri = _data_uri(path)
    return Picture(uri) if uri else None


def _data_uri(path: Path) -> str | None:
    image = square_tile(path)
    if image is None:
        return None
    written = io.BytesIO()
    image.save(written, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"
