"""Measure how fast images are on this machine: decoding them once, reading them warm, and training batches from them.

`benchmarks/data.py [--images N] [--repeats N] [--dir DIR]`; what is measured is announced first, on stderr; the last
line, on stdout, is one JSON document. Measurements that are compared take turns, so that a busy machine affects both;
figures are medians of the repeats, with the interquartile range divided by the median.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from raysnap.datasets.image_file import for_each_image
from raysnap.system import num_cpus

WIDTH, HEIGHT = 512, 384
NUM_CLASSES = 10
RESIZE_SIZE, IMAGE_SIZE = 256, 224
BATCH_ITEMS = 64
NUM_LOADER_WORKERS = 2
SPREAD_LIMIT = 0.10


def main() -> None:
    """Announce what is measured, measure it, and print one JSON line."""
    options = parse_options()
    if options.only:
        sys.stdout.write(json.dumps(ALONE[options.only](options.dir, options.repeats)) + "\n")
        return
    for line in (
        f"{options.images:,} seeded JPEGs of {WIDTH} x {HEIGHT}, {num_cpus()} CPUs, images per second:",
        f"cold: PixelCache.load of all, shorter side {RESIZE_SIZE}, to the disk; against a bare Pillow loop (open,",
        "  convert, resize) in one process, times CPUs, and against one such loop on every CPU at once",
        f"warm: PixelCache.read, centre crops of {IMAGE_SIZE}, batches of {BATCH_ITEMS}, one thread; against copying",
        "  as many bytes",
        f"train: shuffled augmented float batches of {BATCH_ITEMS} from a warm cache; against ImageFolder in a",
        f"  DataLoader of {NUM_LOADER_WORKERS} workers with RandomResizedCrop, flip, ToTensor and Normalize",
        f"medians of {options.repeats} repeats after one that doesn't count; nothing else should run meanwhile",
    ):
        say(line)
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="bench_data-") as folder:
        root = Path(folder) / "photos"
        figures = {
            "num_images": options.images,
            "num_cpus": num_cpus(),
            "python": sys.version.split()[0],
            "jpeg_bytes": draw_photos(root, options.images),
        }
        for part in ALONE:
            say(part)
            figures |= run_alone(part, root, options.repeats)
    for name in sorted(figures):
        if name.endswith("_spread") and figures[name] > SPREAD_LIMIT:
            say(f"unsteady: {name} is {figures[name]:.0%} of the median; the machine was busy")
    sys.stdout.write(json.dumps(figures) + "\n")


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2_000, help="JPEGs that are drawn and measured")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each measurement")
    parser.add_argument("--dir", type=Path, help="folder for the images; the system's temporary one by default")
    parser.add_argument("--only", choices=sorted(ALONE), help=argparse.SUPPRESS)
    return parser.parse_args()


def say(text: str) -> None:
    """Write progress to stderr."""
    sys.stderr.write(f"data: {text}\n")


# Photos


def draw_photos(root: Path, num_images: int) -> float:
    """Write an image folder of seeded JPEGs; return their mean length in bytes."""
    say("drawing")
    for number in range(NUM_CLASSES):
        (root / "train" / f"class-{number}").mkdir(parents=True)

    def draw(index: int) -> int:
        content = draw_photo(index)
        (root / "train" / f"class-{index % NUM_CLASSES}" / f"{index:06d}.jpg").write_bytes(content)
        return len(content)

    return statistics.mean(for_each_image(draw, range(num_images)))


def draw_photo(seed: int) -> bytes:
    """Draw a JPEG with the detail of a photo: clouds of four scales, a few shapes, and a sensor's noise."""
    rng = np.random.default_rng(seed)
    levels_HW3 = rng.normal(0, 6, (HEIGHT, WIDTH, 1)).astype(np.float32)
    for num_columns, weight in ((4, 0.5), (12, 0.25), (40, 0.15), (128, 0.1)):
        num_rows = max(2, num_columns * HEIGHT // WIDTH)
        cloud = Image.fromarray(rng.integers(0, 256, (num_rows, num_columns, 3), dtype=np.uint8))
        levels_HW3 = levels_HW3 + weight * np.asarray(cloud.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    photo = Image.fromarray(levels_HW3.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(photo)
    for _ in range(6):
        x, y, radius = (int(value) for value in rng.integers((0, 0, 10), (WIDTH, HEIGHT, 90)))
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=radius // 4)
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=87)
    return buffer.getvalue()


# Cold


BARE_LOOP = f"""
import sys, time
from PIL import Image
paths = sys.stdin.read().split("\\n")
for path in paths[:10] + paths:
    if path is paths[0]:
        started_s = time.perf_counter()
    with Image.open(path) as image:
        image = image.convert("RGB")
    scale = {RESIZE_SIZE} / min(image.size)
    image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BILINEAR)
print(len(paths) / (time.perf_counter() - started_s))
"""


def measure_cold(root: Path, repeats: int) -> dict[str, Any]:
    """Return images per second of filling a cache, and of bare loops."""
    from raysnap.datasets.dataset import read_folder
    from raysnap.datasets.pixel_cache import PixelCache
    from raysnap.datasets.resizing import Resizing

    dataset = read_folder(root)
    items = dataset.splits["train"]
    paths = [str(item.path) for item in items]

    def fill() -> float:
        shutil.rmtree(root / ".raysnap", ignore_errors=True)
        cache = PixelCache.open(items, dataset, Resizing(RESIZE_SIZE))
        started_s = time.perf_counter()
        cache.load(range(len(items)))
        return len(items) / (time.perf_counter() - started_s)

    rates = take_turns(
        {
            "bare_images_per_s": lambda: bare_loops([paths[: len(paths) // 4]]),
            "bare_on_all_cpus_images_per_s": lambda: bare_loops([paths[i :: num_cpus()] for i in range(num_cpus())]),
            "cold_images_per_s": fill,
        },
        repeats,
    )
    cold = rates["cold_images_per_s"]
    return rates | {
        "cold_images_per_s_per_cpu": cold / num_cpus(),
        "cold_over_bare_times_cpus": cold / (rates["bare_images_per_s"] * num_cpus()),
        "cold_over_bare_on_all_cpus": cold / rates["bare_on_all_cpus_images_per_s"],
    }


def bare_loops(parts: list[list[str]]) -> float:
    """Return images per second of bare loops that run at once, a process for each list of paths."""
    processes = [
        subprocess.Popen([sys.executable, "-c", BARE_LOOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in parts
    ]
    for process, paths in zip(processes, parts, strict=True):
        process.stdin.write("\n".join(paths))
        process.stdin.close()
    rates = [float(process.stdout.read()) for process in processes]
    for process in processes:
        process.wait()
        process.stdout.close()
    return sum(rates)


# Warm


def measure_warm(root: Path, repeats: int) -> dict[str, Any]:
    """Return images per second of crops read on one thread, and of copying their bytes from memory."""
    import torch

    from raysnap.datasets.dataset import read_folder
    from raysnap.datasets.pixel_cache import PixelCache
    from raysnap.datasets.resizing import Resizing

    torch.set_num_threads(1)
    dataset = read_folder(root)
    items = dataset.splits["train"]
    cache = PixelCache.open(items, dataset, Resizing(RESIZE_SIZE))
    positions = torch.randperm(len(cache.load(range(len(items)))), generator=torch.Generator().manual_seed(0))
    source = np.ones((len(items), 3 * IMAGE_SIZE * IMAGE_SIZE), dtype=np.uint8)

    def read() -> float:
        started_s = time.perf_counter()
        for batch in positions.split(BATCH_ITEMS):
            cache.read(batch.tolist(), IMAGE_SIZE)
        return len(items) / (time.perf_counter() - started_s)

    def copy() -> float:
        started_s = time.perf_counter()
        for batch in positions.split(BATCH_ITEMS):
            copied = torch.empty((len(batch), source.shape[1]), dtype=torch.uint8).numpy()
            for row, position in zip(copied, batch.tolist(), strict=True):
                row[:] = source[position]
        return len(items) / (time.perf_counter() - started_s)

    rates = take_turns({"warm_images_per_s_per_cpu": read, "copied_images_per_s_per_cpu": copy}, repeats)
    return rates | {"warm_over_copied": rates["warm_images_per_s_per_cpu"] / rates["copied_images_per_s_per_cpu"]}


# Training


def measure_training(root: Path, repeats: int) -> dict[str, Any]:
    """Return images per second of augmented batches, from the warm cache and from a DataLoader on the same CPUs."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    from raysnap.datasets.augmentation import IMAGENET_MEAN, IMAGENET_STD, augment_and_normalise, item_draws
    from raysnap.datasets.dataset import read_folder
    from raysnap.datasets.pixel_cache import PixelCache
    from raysnap.datasets.resizing import Resizing

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(IMAGE_SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    folder = ImageFolder(root / "train", transform)
    loader = DataLoader(
        folder, BATCH_ITEMS, shuffle=True, num_workers=NUM_LOADER_WORKERS, persistent_workers=True, prefetch_factor=4
    )
    dataset = read_folder(root)
    items = dataset.splits["train"]
    cache = PixelCache.open(items, dataset, Resizing(RESIZE_SIZE))
    cache.load(range(len(items)))
    torch.set_num_threads(num_cpus())
    shuffling = torch.Generator().manual_seed(0)
    done_with = torch.empty(BATCH_ITEMS, 3, IMAGE_SIZE, IMAGE_SIZE)  # as the trained batch before is in a fine-tune

    def from_cache() -> float:
        started_s = time.perf_counter()
        for batch in torch.randperm(len(items), generator=shuffling).split(BATCH_ITEMS):
            pixels = cache.read(batch.tolist(), RESIZE_SIZE)
            augment_and_normalise(pixels, item_draws(0, 0, batch), IMAGE_SIZE, out=done_with[: len(batch)])
        return len(items) / (time.perf_counter() - started_s)

    def from_loader() -> float:
        started_s = time.perf_counter()
        num_images = sum(len(pixels) for pixels, _ in loader)
        return num_images / (time.perf_counter() - started_s)

    rates = take_turns({"train_images_per_s": from_cache, "loader_images_per_s": from_loader}, repeats)
    return rates | {"train_over_loader": rates["train_images_per_s"] / rates["loader_images_per_s"]}


# Clocks


ALONE: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "cold": measure_cold,
    "warm": measure_warm,
    "train": measure_training,
}


def run_alone(part: str, root: Path, repeats: int) -> dict[str, Any]:
    """Measure one part in a fresh process."""
    command = [sys.executable, __file__, "--only", part, "--dir", str(root), "--repeats", str(repeats)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def take_turns(measurements: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Return the median of each measurement, and from four repeats on its interquartile range divided by it."""
    raw: dict[str, list[float]] = {name: [] for name in measurements}
    for turn in range(repeats + 1):
        for name, measure in measurements.items():
            figure = measure()
            if turn:
                raw[name].append(figure)
    figures: dict[str, float] = {}
    for name, values in raw.items():
        figures[name] = statistics.median(values)
        if repeats >= 4:
            first, _, third = statistics.quantiles(values, n=4)
            figures[f"{name}_spread"] = (third - first) / figures[name]
    return figures


if __name__ == "__main__":
    main()
