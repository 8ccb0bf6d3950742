"""Images inside a page: small JPEGs as data URIs, of datasets at a glance and of single files."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raysnap.datasets.contact_sheet import evenly_chosen, square_tile
from raysnap.datasets.dataset import Dataset, find_dataset, read_folder
from raysnap.datasets.image_file import for_each_image
from raysnap.errors import DataError
from raysnap.runs.questions import short_dataset
from raysnap.runs.run import Run

logger = logging.getLogger(__name__)

NUM_PER_DATASET = 10
MAX_DATASETS = 8
JPEG_QUALITY = 82


@dataclass(frozen=True)
class Strip:
    """A dataset at a glance: what is in it, and (data URI, class) of one image of some of its classes."""

    name: str
    num_classes: int
    num_images: dict[str, int]
    images: tuple[tuple[str, str], ...]


def thumbnails(paths: Sequence[Path]) -> list[str | None]:
    """A data URI of each file's central square; None for those that are gone or no image."""
    return for_each_image(lambda index: _data_uri(paths[index]), range(len(paths)))


def strips(run: Run) -> list[Strip]:
    """The datasets that the run trained on or asked about and that are still here, at most eight."""
    if not isinstance(run.config.get("data_dir"), str):
        return []  # a dataset of the same name elsewhere may be another one
    named = [trial.dataset for trial in run.trials] + [search.dataset for search in run.searches]
    found = []
    for name in list(dict.fromkeys(one for one in named if one))[:MAX_DATASETS]:
        dataset = _find(name, run)
        if dataset is not None:
            found.append(_strip(name, dataset))
    return [one for one in found if one.images]


def _find(name: str, run: Run) -> Dataset | None:
    """The dataset where the run had it, or beside the run directory where both were moved together."""
    data_dir = Path(run.config["data_dir"])
    here = run.run_dir.resolve()
    for folder in (data_dir, here.parent / data_dir.name, here.parent.parent / data_dir.name):
        try:
            root = find_dataset(name, folder)
            if root is not None:
                return read_folder(root)
        except DataError as error:
            logger.debug("no pictures of %s: %s", name, error)
    return None


def _strip(name: str, dataset: Dataset) -> Strip:
    first = {item.label: item for item in reversed(dataset.splits["train"])}
    labels = evenly_chosen(len(dataset.classes), NUM_PER_DATASET)
    chosen = [first[label] for label in labels if label in first]
    others = [item for item in dataset.splits["train"] if item not in chosen]
    wanted = NUM_PER_DATASET - len(chosen)
    chosen += [others[index] for index in evenly_chosen(len(others), wanted)] if 1 < wanted <= len(others) else []
    uris = thumbnails([item.path for item in chosen])
    images = [(uri, dataset.classes[item.label]) for uri, item in zip(uris, chosen, strict=True) if uri]
    counts = {split: len(items) for split, items in dataset.splits.items()}
    return Strip(short_dataset(name), len(dataset.classes), counts, tuple(images))


def _data_uri(path: Path) -> str | None:
    image = square_tile(path)
    if image is None:
        return None
    written = io.BytesIO()
    image.save(written, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"
