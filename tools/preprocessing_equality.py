"""Compare pixels of raysnap's cache with those of each library's own transform, for all of its preprocessings.

    pip install timm==1.0.31 transformers==5.24.0
    .venv/bin/python tools/preprocessing_equality.py PHOTOS

Photos are ten images below the folder PHOTOS, of as many sizes as there are. Compared are: every enum of torchvision's
weights for classification, quantised ones too, with its preset; every `pretrained_cfg` of timm that gives other pixels
with `create_transform` in evaluation; processors of transformers with their Pillow backend. Prints one JSON document:
per library how many were compared, which differ in any pixel, by how much normalised values differ at most, and what
was refused; for transformers also by how much its own torchvision backend differs. Exit code 1 where a pixel differs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from raysnap.datasets.augmentation import normalise
from raysnap.datasets.dataset import Dataset, read_folder
from raysnap.datasets.image_file import read_image
from raysnap.datasets.pixel_cache import PixelCache
from raysnap.errors import WeightsError
from raysnap.store.preprocessing import Preprocessing, of_processor, of_timm

Transform = Callable[[Image.Image], Tensor]
SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Pair:
    """A library's way of reading images, and what raysnap takes it for.

    Attributes:
        pixels: from an image to uint8 pixels `[3, S, S]`, by the library.
        values: from an image to normalised values, by the library; None where they are not compared.
    """

    name: str
    preprocessing: Preprocessing
    pixels: Transform
    values: Transform | None = None


def torchvision_pairs() -> Iterator[Pair]:
    """Yield the weights of every enum of torchvision for classification."""
    from torchvision import models

    from raysnap.models.block_facts import input_fields

    builders = [*models.list_models(module=models), *models.list_models(module=models.quantization)]
    for builder in builders:
        for entry in models.get_model_weights(builder):
            transform = entry.transforms()
            plain = entry.transforms(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
            yield Pair(str(entry), Preprocessing(**input_fields(transform)), _from_unit(plain), transform)


def timm_pairs(names: Sequence[str] | None = None) -> Iterator[Pair | WeightsError]:
    """Yield every configuration of timm's pretrained weights that gives other pixels, or those of the names given."""
    import timm
    from timm.data import create_transform, resolve_data_config

    seen = set()
    for name in names or timm.list_pretrained():
        config = timm.get_pretrained_cfg(name).to_dict()
        resolved = resolve_data_config({}, pretrained_cfg=config)
        key = json.dumps({name: value for name, value in resolved.items() if name not in ("mean", "std")})
        if key in seen:
            continue
        seen.add(key)
        try:
            preprocessing = of_timm(config, name)
        except WeightsError as error:
            yield error
            continue
        yield Pair(name, preprocessing, create_transform(**resolved, normalize=False), create_transform(**resolved))


PROCESSORS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "Beit": [{}, {"do_center_crop": True, "size": 256}],
    "Bit": [{}],
    "CLIP": [{}, {"size": {"shortest_edge": 336}, "crop_size": 336}],
    "ConvNext": [{}, {"size": {"shortest_edge": 224}}, {"size": {"shortest_edge": 288}, "crop_pct": 0.95}],
    "DeiT": [{}],
    "EfficientNet": [{}, {"do_center_crop": True, "resample": 0}, {"include_top": False}],
    "Levit": [{}],
    "MobileNetV1": [{}],
    "MobileNetV2": [{}, {"crop_size": 192, "size": {"shortest_edge": 219}}],
    "MobileViT": [{}, {"do_flip_channel_order": False}],
    "PoolFormer": [{}, {"crop_pct": 0.95}],
    "Pvt": [{}],
    "Segformer": [{}],
    "Siglip": [{}, {"size": {"height": 384, "width": 384}}],
    "ViT": [{}, {"size": {"height": 384, "width": 384}, "resample": 3}, {"resample": 1}],
}


def transformers_pairs() -> Iterator[Pair | WeightsError]:
    """Yield processors of transformers with their Pillow backend, by what they write into their file."""
    import transformers

    for kind, ways in PROCESSORS.items():
        for way in ways:
            make = getattr(transformers, f"{kind}ImageProcessorPil")
            processor = make(**way)
            try:
                preprocessing = of_processor(json.loads(processor.to_json_string()), f"{kind} {way}")
            except WeightsError as error:
                yield error
                continue
            twice = {"include_top": False} if kind == "EfficientNet" else {}
            raw = make(**{**way, **twice, "do_rescale": False, "do_normalize": False})
            yield Pair(f"{kind} {way}", preprocessing, _of_processor(raw), _of_processor(processor))


def _from_unit(transform: Transform) -> Transform:
    return lambda image: (transform(image) * 255).round().to(torch.uint8)


def _of_processor(processor: Any) -> Transform:
    return lambda image: torch.from_numpy(np.asarray(processor(image)["pixel_values"][0]))


def make_dataset(photos: Sequence[Path], folder: Path) -> Dataset:
    """Return a dataset of copies of the photos: one split, and two classes, as a dataset has."""
    for number, photo in enumerate(photos):
        target = folder / "photos" / "train" / ("even", "odd")[number % 2]
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photo, target / f"{number:03d}{photo.suffix}")
    return read_folder(folder / "photos")


def compare(pair: Pair, dataset: Dataset) -> tuple[int, float]:
    """Return in how many pixels the two differ, and by how much normalised values do at most."""
    items, how = dataset.splits["train"], pair.preprocessing
    cache = PixelCache.open(items, dataset, how.resizing)
    found = cache.read(range(len(items)), how.image_size, how.crop_rounding)
    num_different, largest = 0, 0.0
    for item, pixels in zip(items, found, strict=True):
        image = read_image(item.path)
        expected = pair.pixels(image)
        num_different += int((pixels != expected).any(0).sum()) if expected.shape == pixels.shape else pixels[0].numel()
        if pair.values is not None:
            values = pair.values(image)
            if values.shape == pixels.shape:
                largest = max(largest, float((normalise(pixels[None], how.mean, how.std)[0] - values).abs().max()))
    return num_different, largest


def summarise(pairs: Iterator[Pair | WeightsError], dataset: Dataset) -> dict[str, Any]:
    """Compare all pairs of a library."""
    num_compared, different, refused, largest = 0, {}, [], 0.0
    for pair in pairs:
        if isinstance(pair, WeightsError):
            refused.append(str(pair))
            continue
        num_different, difference = compare(pair, dataset)
        num_compared, largest = num_compared + 1, max(largest, difference)
        if num_different:
            different[pair.name] = num_different
    return {"compared": num_compared, "different_pixels": different, "most_in_values": largest, "refused": refused}


def torchvision_backend(dataset: Dataset) -> dict[str, float]:
    """Return by how many of 255 steps transformers' torchvision backend differs from its Pillow backend at most."""
    import transformers

    apart = {}
    for kind in ("CLIP", "ConvNext", "DeiT", "ViT"):
        both = [
            getattr(transformers, f"{kind}ImageProcessor{backend}")(do_rescale=False, do_normalize=False)
            for backend in ("Pil", "")
        ]
        images = [read_image(item.path) for item in dataset.splits["train"]]
        results = [[np.asarray(one(image)["pixel_values"][0], dtype=float) for image in images] for one in both]
        apart[kind] = max(float(abs(a - b).max()) for a, b in zip(*results, strict=True))
    return apart


def pick_photos(folder: Path, num_photos: int) -> list[Path]:
    """Return photos below a folder, of as many sizes as there are, the largest first."""
    of_size: dict[tuple[int, int], list[Path]] = defaultdict(list)
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
        with Image.open(path) as image:
            of_size[image.size].append(path)
    sizes = sorted(of_size, key=lambda size: -size[0] * size[1])
    turns = [path for paths in zip_longest(*(of_size[size] for size in sizes)) for path in paths if path is not None]
    return turns[:num_photos]


def spread(pairs: Sequence[Pair | WeightsError], num_pairs: int | None) -> Iterator[Pair | WeightsError]:
    """Yield so many of the pairs, evenly from first to last; all where None."""
    count = len(pairs) if num_pairs is None else min(num_pairs, len(pairs))
    yield from (pairs[index * len(pairs) // count] for index in range(count))


def main() -> int:
    """Compare all that is installed; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--num-photos", type=int, default=10)
    parser.add_argument("--libraries", default="torchvision,timm,transformers")
    parser.add_argument("--num-timm", type=int, default=None, help="how many of timm's, spread over all of them")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    makers: dict[str, Callable[[], Iterator[Pair | WeightsError]]] = {
        "torchvision": torchvision_pairs,
        "timm": lambda: spread(list(timm_pairs()), options.num_timm),
        "transformers": transformers_pairs,
    }
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(pick_photos(options.photos, options.num_photos), Path(folder))
        result: dict[str, Any] = {"photos": len(dataset.splits["train"])}
        for library in options.libraries.split(","):
            result[library] = summarise(makers[library](), dataset)
        if "transformers" in result:
            result["transformers"]["its_torchvision_backend_differs_by"] = torchvision_backend(dataset)
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return int(any(isinstance(found, dict) and found["different_pixels"] for found in result.values()))


if __name__ == "__main__":
    raise SystemExit(main())
