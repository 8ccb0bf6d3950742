"""Measure what caching the outputs of frozen blocks saves: the time of a training epoch with and without it.

`benchmarks/prefix.py [--architecture NAME] [--retrain-index N] [--items N] [--batch-size N] [--image-size PX]
[--repeats N] [--device NAME] [--dir DIR]`; what is measured is announced first, on stderr; the last line, on stdout, is
one JSON document. Epochs with and without the cache take turns; times are medians, with their interquartile range over
the median beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from raysnap.config.train import TrainConfig
from raysnap.models.block_facts import block_shapes, num_body_blocks
from raysnap.models.blocks import build_model, random_tensors
from raysnap.models.numerics import Numerics
from raysnap.models.tensor_bytes import block_digest
from raysnap.store.preprocessing import Preprocessing
from raysnap.training.feeds import LabelledItems
from raysnap.training.finetune import finetune
from raysnap.training.freezing import StartModel
from raysnap.training.prefix_cache import PrefixCache

NUM_CLASSES = 100
NUM_VAL = 2
SPREAD_LIMIT = 0.10


def main() -> None:
    """Announce what is measured, measure it, and print one JSON line."""
    options = parse_options()
    flops = [shape.flops for shape in block_shapes(options.architecture, options.image_size)]
    num_frozen = 1 + num_body_blocks(options.architecture) - options.retrain_index
    share = sum(flops[num_frozen:]) / sum(flops)
    limit = (1 + 2 * share) / (3 * share)
    for line in (
        f"training epoch of {options.architecture} at retrain index {options.retrain_index}: {options.items} items, "
        f"{options.image_size} px, batches of {options.batch_size}, Adam",
        "  without cache: the frozen blocks run in the epoch; with it their outputs are read from the memory map",
        f"  limit by FLOPs, backward at twice forward: (1 + 2u) / 3u = {limit:.2f} at u = {share:.3f} of them trained;",
        "  early blocks take more time per FLOP than late ones, so a measured speed-up may pass it",
        f"medians of {options.repeats} repeats that take turns, the first of each apart; nothing else should run",
    ):
        say(line)
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="bench_prefix-") as folder:
        figures = measure(options, num_frozen, Path(folder))
    figures |= {"trainable_share": share, "limit": limit, "of_limit": figures["speed_up"] / limit}
    for name in sorted(figures):
        if name.endswith("_spread") and figures[name] > SPREAD_LIMIT:
            say(f"unsteady: {name} is {figures[name]:.0%} of the median; the machine was busy")
    sys.stdout.write(json.dumps(figures) + "\n")


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="resnet18", help="a torchvision builder's name")
    parser.add_argument("--retrain-index", type=int, default=1, help="trained body blocks, not counting the head")
    parser.add_argument("--items", type=int, default=512, help="training items")
    parser.add_argument("--batch-size", type=int, default=128, help="items per optimizer step")
    parser.add_argument("--image-size", type=int, default=224, help="edge of the images, in pixels")
    parser.add_argument("--repeats", type=int, default=5, help="timed epochs of each kind")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to train")
    parser.add_argument("--dir", type=Path, help="folder for the cache; the system's temporary one by default")
    return parser.parse_args()


def say(text: str) -> None:
    """Write progress to stderr."""
    sys.stderr.write(f"prefix: {text}\n")


def measure(options: argparse.Namespace, num_frozen: int, folder: Path) -> dict[str, Any]:
    """Return seconds per epoch of both kinds, and what filling the cache took."""
    preprocessing = Preprocessing.cropping(options.image_size)
    splits = {
        "train": random_items(options.items, options.image_size, seed=0),
        "val": random_items(NUM_VAL, options.image_size, seed=1),
    }
    config = TrainConfig(epochs=1, batch_size=options.batch_size)
    cache = PrefixCache.beside(folder, num_frozen, budget_bytes=2**40)
    epochs_s: dict[str, list[float]] = {"uncached": [], "cached": []}
    fill_s = 0.0
    for repeat in range(options.repeats + 1):
        for name, prefix in (("uncached", None), ("cached", cache)):
            tensors = [tensors for _, tensors in random_tensors(options.architecture, NUM_CLASSES, 0)]
            model = build_model(options.architecture, tensors).to(options.device)
            digests = [block_digest(block.tensors()) for block in model]
            result = finetune(
                StartModel(model, num_frozen, digests),
                splits,
                preprocessing,
                config,
                seed=0,
                on_epoch=lambda entry, save: None,
                prefix=prefix,
            )
            fill_s = max(fill_s, result.timings_s["prefix"])
            if repeat:
                epochs_s[name].append(result.timings_s["train"])
            say(f"repeat {repeat}: {name} {result.timings_s['train']:.2f} s")
    uncached, cached = (statistics.median(epochs_s[name]) for name in ("uncached", "cached"))
    return {
        "architecture": options.architecture,
        "retrain_index": options.retrain_index,
        "num_items": options.items,
        "batch_size": options.batch_size,
        "image_size": options.image_size,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "dtype": str(Numerics.choose(config, torch.device(options.device)).dtype).removeprefix("torch."),
        "num_cpus": os.cpu_count(),
        "torch": torch.__version__,
        "fill_s": fill_s,
        "cache_bytes": sum(path.stat().st_size for path in cache.place.rglob("*.bin")),
        "uncached_epoch_s": uncached,
        "uncached_epoch_spread": spread(epochs_s["uncached"]),
        "cached_epoch_s": cached,
        "cached_epoch_spread": spread(epochs_s["cached"]),
        "speed_up": uncached / cached,
    }


def random_items(num_items: int, image_size: int, seed: int) -> LabelledItems:
    """Make items of noise in memory, where the pixel cache's are once read."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_items, 3, image_size, image_size)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, NUM_CLASSES, (num_items,), generator=generator)
    return LabelledItems(lambda positions, crop_size: pixels[positions], labels, digest=f"noise-{seed}")


def spread(times_s: list[float]) -> float:
    """Return the interquartile range divided by the median."""
    if len(times_s) < 2:
        return 0.0
    first, middle, third = statistics.quantiles(times_s, n=4, method="inclusive")
    return (third - first) / middle


if __name__ == "__main__":
    main()
