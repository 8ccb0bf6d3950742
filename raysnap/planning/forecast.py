"""What a job that fine-tunes will take, known before it starts and without torch: compute, disk, time, downloads.

Bytes are upper bounds of what is written. FLOPs count convolutions and matrix products. The time is FLOPs over the
speed of a matrix product, measured on this machine's CPUs or assumed for a GPU, so it is a rough figure.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raysnap.config.folders import BucketAddress
from raysnap.config.jobs import TrialsConfig
from raysnap.datasets.dataset import BUILT_IN, read_folder
from raysnap.datasets.splits import VAL_FRACTION
from raysnap.errors import ConfigError
from raysnap.humanize import bytes_text
from raysnap.models.architecture import shown
from raysnap.models.block_facts import block_shapes, weights_files
from raysnap.models.block_shape import WIDTH_OF_MEASURED_HEADS, BlockShape
from raysnap.planning.generate import RANDOM, TrialsPlan
from raysnap.planning.gpu_memory import GpuKind, TrainingItems, gpu_kinds
from raysnap.store.preprocessing import TextPreprocessing
from raysnap.system import num_cpus
from raysnap.training.prefix_plan import plan_trials
from raysnap.training.trial import Trial

SHARE_OF_MATRIX_SPEED = 0.3
TRIAL_OVERHEAD_S = 1.0
MEASURED_EDGE, MEASURED_S = 512, 0.2
GPU_FLOPS_PER_S = 20e12
COPIES_IN_A_CHECKPOINT = 4  # the best weights, the last ones and Adam's two moments


@dataclass(frozen=True)
class Forecast:
    """What a job will take in compute, disk and time.

    Attributes:
        num_trials: trainings, those of bases included.
        num_epochs: epochs of all trials.
        train_flops: FLOPs of all of them; frozen blocks whose outputs are cached run once.
        store_bytes: new bytes in the store, every shared block once.
        copied_bytes: what a plain copy of every snapshot would take.
        checkpoint_bytes: the most that checkpoints take at one time.
        pixel_bytes: the decoded images of all datasets, as many of each as the job uses.
        prefix_bytes: the cached outputs of frozen blocks.
        to_draw: built-in datasets that are generated first.
        to_download: files of torchvision's weights that are downloaded first.
        cpu_s: the time on this machine's CPUs, in seconds.
        gpu_s: the time on one GPU at `GPU_FLOPS_PER_S`, in seconds.
        gpu_kinds: the memory that trials take of a GPU, by kind.
        gpu_bytes: the memory of each GPU; empty where it isn't known.
        inputs: a line for each base whose weights see images in another than the usual way, or at another size.
    """

    num_trials: int
    num_epochs: int
    train_flops: float
    store_bytes: int
    copied_bytes: int
    checkpoint_bytes: int
    pixel_bytes: int
    prefix_bytes: int
    to_draw: tuple[str, ...]
    to_download: tuple[str, ...]
    cpu_s: float
    gpu_s: float
    gpu_kinds: tuple[GpuKind, ...]
    gpu_bytes: tuple[int, ...]
    inputs: tuple[str, ...]


def forecast(config: TrialsConfig, plan: TrialsPlan, gpu_bytes: Sequence[int] = ()) -> Forecast:
    """Return what the job will take beyond what is already there; reads folders and writes nothing.

    Args:
        gpu_bytes: the memory of each GPU, as far as it is known.
    """
    trials = [trial for trial in [*plan.bases, *plan.trials] if trial.dataset]
    sizes = {name: _DatasetSize.of(folder, config) for name, folder in plan.datasets.items()}
    num_items = {name: size.num_items for name, size in sizes.items()}
    depths = plan_trials(trials, config.image_size, num_items, config.prefix_cache_bytes)
    fills = {
        _PrefixFill(
            trial.base_key,
            trial.architecture,
            trial.trained_on,
            _views(trial),
            _edge(trial, config),
            depths[trial.id],
        )
        for trial in trials
    }
    flops = sum(
        _train_flops(trial, sizes[trial.trained_on], _edge(trial, config), depths[trial.id]) for trial in trials
    ) + sum(fill.flops(sizes) for fill in fills)
    trained = [_trained_bytes(trial, sizes[trial.trained_on].num_classes, _edge(trial, config)) for trial in trials]
    base_bytes = _untrained_bytes(config, plan, sizes)
    models = [_model_bytes(one.architecture, sizes[one.trained_on].num_classes, _edge(one, config)) for one in trials]
    num_at_once = min(len(trials), config.resources.max_concurrent or num_cpus())
    seen = {(trial.trained_on, plan.preprocessing_of(trial).resizing) for trial in trials}
    items = {name: TrainingItems(size.num_classes, size.num_items) for name, size in sizes.items()}
    return Forecast(
        num_trials=len(trials),
        num_epochs=sum(trial.train.epochs for trial in trials),
        train_flops=flops,
        store_bytes=base_bytes + sum(trained),
        copied_bytes=base_bytes + sum(models),
        checkpoint_bytes=COPIES_IN_A_CHECKPOINT * sum(sorted(trained, reverse=True)[:num_at_once]),
        pixel_bytes=sum(sum(sizes[name].num_items.values()) * resizing.slot_bytes for name, resizing in seen),
        prefix_bytes=sum(fill.num_bytes(sizes) for fill in fills),
        to_draw=tuple(name for name, folder in plan.datasets.items() if folder is None and name in BUILT_IN),
        to_download=_missing_weights(plan),
        cpu_s=flops / (SHARE_OF_MATRIX_SPEED * _matrix_flops_per_s()) + TRIAL_OVERHEAD_S * len(trials),
        gpu_s=flops / GPU_FLOPS_PER_S + TRIAL_OVERHEAD_S * len(trials),
        gpu_kinds=gpu_kinds(trials, config.image_size, items, config.resources, gpu_bytes),
        gpu_bytes=tuple(gpu_bytes),
        inputs=_inputs(plan),
    )


def check_room(config: TrialsConfig, needed: Forecast) -> None:
    """Check that the disks have room for what the job writes.

    Raises:
        ConfigError: one of them is too full; the message says which key writes how much there.
    """
    wanted: dict[int, list[tuple[str, Path, int]]] = {}
    for key, path, num_bytes in (
        *([] if isinstance(config.store, BucketAddress) else [("store", config.store, needed.store_bytes)]),
        ("run_dir", config.run_dir, needed.checkpoint_bytes),
        ("data_dir", config.data_dir, needed.pixel_bytes + needed.prefix_bytes),
    ):
        folder = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
        wanted.setdefault(folder.stat().st_dev, []).append((key, folder, num_bytes))
    for parts in wanted.values():
        free_bytes, total = shutil.disk_usage(parts[0][1]).free, sum(num_bytes for *_, num_bytes in parts)
        if total > free_bytes:
            key, folder, num_bytes = max(parts, key=lambda part: part[2])
            raise ConfigError(
                f"{key}: the job writes up to {bytes_text(total)} to the disk of {folder} ({bytes_text(num_bytes)} "
                f"as {key}), found {bytes_text(free_bytes)} free; free space there or choose another {key}="
            )


@dataclass(frozen=True)
class _DatasetSize:
    """How many items of a dataset a fine-tune uses."""

    num_train: int
    num_val: int
    num_test: int
    num_classes: int

    @classmethod
    def of(cls, folder: Path | None, config: TrialsConfig) -> _DatasetSize:
        """Return the sizes after the job's caps; a missing built-in dataset has those it will be generated with."""
        if folder is None:
            shapes, num_classes = config.shapes, 4
            train, val, test = shapes.num_train, shapes.num_val, shapes.num_test
        else:
            dataset = read_folder(folder)
            train, val, test = (len(dataset.splits.get(split, ())) for split in ("train", "val", "test"))
            num_classes = len(dataset.classes)
        if not val:
            val = round(VAL_FRACTION * train)
            train -= val
        caps = (config.num_train, config.num_val, config.num_test)
        used = [size if cap is None else min(size, cap) for size, cap in zip((train, val, test), caps, strict=True)]
        num_train, num_val, num_test = used
        return cls(num_train, num_val, num_test, num_classes)

    @property
    def num_items(self) -> dict[str, int]:
        """The items used of each split."""
        return {"train": self.num_train, "val": self.num_val, "test": self.num_test}

    def num_cached(self, views: int | None) -> int:
        """Return how many items have their outputs cached, each fixed view counted."""
        return (views or 0) * self.num_train + self.num_val + self.num_test


def _shapes_for(architecture: str, num_classes: int, image_size: int) -> list[tuple[float, float]]:
    """Return FLOPs per item and parameter bytes of every block, with a head for `num_classes`."""
    *body, head = block_shapes(architecture, image_size)
    scale = num_classes / WIDTH_OF_MEASURED_HEADS
    return [*((block.flops, block.num_parameter_bytes) for block in body), _scaled(head, scale)]


def _scaled(head: BlockShape, scale: float) -> tuple[float, float]:
    return head.flops * scale, head.num_parameter_bytes * scale


def _train_flops(trial: Trial, size: _DatasetSize, image_size: int, depth: int) -> float:
    """Return the FLOPs of a trial: forward where not cached, backward where trained (twice a forward), and test."""
    flops = [block_flops for block_flops, _ in _shapes_for(trial.architecture, size.num_classes, image_size)]
    forward, cached, trained = sum(flops), sum(flops[:depth]), sum(flops[trial.num_frozen :])
    train = forward - (cached if _views(trial) else 0) + 2 * trained
    per_epoch = size.num_train * train + size.num_val * (forward - cached)
    return trial.train.epochs * per_epoch + size.num_test * (forward - cached)


def _edge(trial: Trial, config: TrialsConfig) -> int:
    return trial.image_size or config.image_size


def _views(trial: Trial) -> int | None:
    """Return how many views of training items can be cached; None where every epoch has its own."""
    return None if trial.train.is_mixing else trial.train.views


@dataclass(frozen=True)
class _PrefixFill:
    """Outputs of frozen blocks that are computed once and cached: those of a base's first `depth` blocks on a dataset.

    Attributes:
        views: fixed views of each training item; None where only val and test are cached.
    """

    base: str
    architecture: str
    dataset: str
    views: int | None
    image_size: int
    depth: int

    def flops(self, sizes: dict[str, _DatasetSize]) -> float:
        flops = sum(shape.flops for shape in block_shapes(self.architecture, self.image_size)[: self.depth])
        return flops * sizes[self.dataset].num_cached(self.views)

    def num_bytes(self, sizes: dict[str, _DatasetSize]) -> int:
        if not self.depth:
            return 0
        shape = block_shapes(self.architecture, self.image_size)[self.depth - 1]
        return shape.output_bytes * sizes[self.dataset].num_cached(self.views)


def _trained_bytes(trial: Trial, num_classes: int, image_size: int) -> int:
    blocks = _shapes_for(trial.architecture, num_classes, image_size)
    return math.ceil(sum(num_bytes for _, num_bytes in blocks[trial.num_frozen :]))


def _model_bytes(architecture: str, num_classes: int, image_size: int) -> int:
    return math.ceil(sum(num_bytes for _, num_bytes in _shapes_for(architecture, num_classes, image_size)))


def _untrained_bytes(config: TrialsConfig, plan: TrialsPlan, sizes: dict[str, _DatasetSize]) -> int:
    """Return the most that the bases add which are stored untrained; a snapshot of the store adds nothing."""
    first = next(trial.trained_on for trial in [*plan.trials, *plan.bases] if trial.dataset)
    total = 0
    for base in plan.bases:
        weights = plan.weights[base.base_key]
        is_new = weights == RANDOM or Path(weights).is_file() or weights in weights_files(base.architecture)
        if base.dataset is None and is_new:
            num_classes = sizes[first].num_classes if weights == RANDOM else WIDTH_OF_MEASURED_HEADS
            total += _model_bytes(base.architecture, num_classes, _edge(base, config))
    return total


def _inputs(plan: TrialsPlan) -> tuple[str, ...]:
    """Say how bases are trained whose weights see texts, or images in another than the usual way."""
    lines = []
    for base in plan.bases:
        if (own := plan.inputs.get(base.base_key)) is not None:
            used, name = plan.preprocessing_of(base), f"{plan.weights[base.base_key]} of {shown(base.architecture)}"
            if isinstance(used, TextPreprocessing):
                lines.append(f"{name}: its texts are {used.text}")
                continue
            size = "" if used == own else f"; image_size makes the crop {used.image_size} px, of {used.resize_size} px"
            lines.append(f"{name}: its images are {own.text}{size}")
    return tuple(dict.fromkeys(lines))


def _missing_weights(plan: TrialsPlan) -> tuple[str, ...]:
    """Return the files of torchvision's weights that torch.hub's folder lacks."""
    files: set[str] = set()
    for base in plan.bases:
        weights = plan.weights[base.base_key]
        known = weights_files(base.architecture)
        if weights in known and not Path(weights).is_file():
            files.add(known[weights])
    return tuple(sorted(name for name in files if not (_hub_dir() / name).exists()))


def _hub_dir() -> Path:
    """Return where torch.hub keeps downloaded weights: https://docs.pytorch.org/docs/stable/hub.html."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TORCH_HOME") or Path(cache) / "torch") / "hub" / "checkpoints"


def _matrix_flops_per_s() -> float:
    """Measure the speed of float32 matrix products on all CPUs at once, in about 0.2 s.

    It is the speed that this process gets now, beside whatever else runs here.
    """
    matrix = np.ones((MEASURED_EDGE, MEASURED_EDGE), dtype=np.float32)

    def multiply(ends: float) -> int:
        count = 0
        while time.perf_counter() < ends:
            matrix @ matrix
            count += 1
        return count

    with ThreadPoolExecutor(num_cpus()) as pool:
        started = time.perf_counter()
        counts = list(pool.map(multiply, [started + MEASURED_S] * num_cpus()))
        elapsed_s = time.perf_counter() - started
    return 2 * MEASURED_EDGE**3 * sum(counts) / elapsed_s
