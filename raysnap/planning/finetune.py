"""What a finetune trains, known without torch: its shortlist as a sweep, cut so that it fits what time is left.

The sweep's space is the finetune's recipes, and beside these the snapshots to start from. Trials are ordered by recipe
first: where time runs out, every start has had the first recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raysnap.cluster.gpu_room import known_gpu_bytes
from raysnap.config.sweep import FinetuneConfig, SweepConfig
from raysnap.models.block_facts import num_body_blocks
from raysnap.planning.forecast import forecast
from raysnap.planning.sweep import plan_sweep
from raysnap.runs.shortlist import TRAINING_DIR, ShortlistedStart

SEARCH_SHARE = 0.25  # of a time budget, at most, for the search
RESERVE_SHARE, LEAST_RESERVE_S = 0.05, 10.0  # for starting Ray, storing and reporting
ASHA_SHARE = 0.6  # of all planned epochs that run, as ASHA stops most fine-tunes early
MIN_EPOCHS = 2


def sweep_config(
    config: FinetuneConfig,
    dataset_dir: Path,
    starts: Sequence[ShortlistedStart],
    epochs: int,
    training_s: float | None = None,
) -> SweepConfig:
    """Return the sweep that fine-tunes from these starts.

    Args:
        dataset_dir: the dataset's folder.
        epochs: of each fine-tune, at most.
        training_s: when the sweep stops.
    """
    train = config.train.model_copy(update={"epochs": epochs}).model_dump(mode="json")
    architectures = list(dict.fromkeys(start.architecture for start in starts))
    space = config.model_dump(mode="json")["space"]
    fewest = min(num_body_blocks(architecture) for architecture in architectures)
    return SweepConfig.model_validate(
        {
            "seed": config.seed,
            "run_dir": config.run_dir / TRAINING_DIR,
            "store": config.store,
            "data_dir": config.data_dir,
            "datasets": [str(dataset_dir)],
            "architectures": architectures,
            "image_size": starts[0].image_size,
            "train": train,
            "base": {"weights": starts[0].snapshot},
            "space": _fitted(space, fewest) | _starts_space(starts),
            "num_samples": config.num_samples,
            "scheduler": "fifo" if config.resources.num_workers else "asha",
            "metric": config.metric,
            "grace_epochs": min(config.grace_epochs, epochs),
            "reduction_factor": config.reduction_factor,
            "time_budget_s": training_s,
            "keep": "best",
            **{key: getattr(config, key) for key in ("num_train", "num_val", "num_test", "prefix_cache_bytes")},
            "trackers": config.trackers,
            "resources": config.resources,
            **({"shapes": config.shapes} if config.shapes else {}),
        }
    )


def _starts_space(starts: Sequence[ShortlistedStart]) -> dict[str, Any]:
    """Return the part of a space that chooses the start, and with it the architecture and the size of images."""
    space: dict[str, Any] = {"base.weights": {"grid": {start.name: start.snapshot for start in starts}}}
    for key, value_of in _FOLLOWING.items():
        values = list(dict.fromkeys(value_of(start) for start in starts))
        if len(values) > 1:
            space[key] = [
                {
                    "when": {"base.weights": [start.snapshot for start in starts if value_of(start) == value]},
                    "choice": [value],
                }
                for value in values
            ]
    return space


_FOLLOWING: dict[str, Callable[[ShortlistedStart], Any]] = {
    "architecture": lambda start: start.architecture,
    "image_size": lambda start: start.image_size,
}


def _fitted(space: dict[str, Any], num_blocks: int) -> dict[str, Any]:
    """Return the space with no more learning rates than the smallest net has blocks to give them to."""
    entries = space.get("train.layer_lrs")
    if entries is None:
        return space
    listed = entries if isinstance(entries, list) else [entries]
    return space | {"train.layer_lrs": [_fitted_entry(entry, num_blocks + 1) for entry in listed]}


def _fitted_entry(entry: dict[str, Any], most: int) -> dict[str, Any]:
    def cut(value: Any) -> Any:
        return value[:most] if isinstance(value, list | tuple) else value

    found = dict(entry)
    for kind in ("grid", "choice"):
        if isinstance(options := entry.get(kind), dict):
            found[kind] = {label: cut(value) for label, value in options.items()}
        elif isinstance(options, list | tuple):
            found[kind] = [cut(value) for value in options]
    return found


def fit_to_time(
    config: FinetuneConfig, dataset_dir: Path, starts: Sequence[ShortlistedStart], training_s: float
) -> tuple[tuple[ShortlistedStart, ...], int, float]:
    """Return the starts and epochs that are forecast to fit the time left for training, and that forecast in seconds.

    First epochs go, down to a third; then starts, down to one; then epochs again.
    """
    most = config.train.epochs
    third = min(most, max(MIN_EPOCHS, -(-most // 3)))
    steps = [(len(starts), epochs) for epochs in range(most, third, -1)]
    steps += [(count, third) for count in range(len(starts), 0, -1)]
    steps += [(1, epochs) for epochs in range(third - 1, MIN_EPOCHS - 1, -1)]
    chosen, needed_s = steps[-1], 0.0
    low, high = 0, len(steps) - 1
    while low <= high:  # what a step takes falls from step to step
        middle = (low + high) // 2
        middle_s = forecast_s(config, dataset_dir, starts[: steps[middle][0]], steps[middle][1])
        if middle_s <= training_s or middle == len(steps) - 1:
            chosen, needed_s, high = steps[middle], middle_s, middle - 1
        else:
            low = middle + 1
    return tuple(starts[: chosen[0]]), chosen[1], needed_s


def forecast_s(config: FinetuneConfig, dataset_dir: Path, starts: Sequence[ShortlistedStart], epochs: int) -> float:
    """Return how long the fine-tunes are forecast to take here, in seconds: a rough figure."""
    sweep = sweep_config(config, dataset_dir, starts, epochs)
    needed = forecast(sweep, plan_sweep(sweep))
    total_s = needed.gpu_s / max(1, len(known_gpu_bytes())) if known_gpu_bytes() else needed.cpu_s
    return ASHA_SHARE * total_s if sweep.scheduler == "asha" else total_s
