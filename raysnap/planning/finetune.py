"""What a finetune trains, known without torch: its shortlist as a sweep, cut so that it fits what time is left.

The sweep's space is the finetune's recipes, and beside these the snapshots to start from. Trials are ordered by recipe
first: where time runs out, every start has had the first recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raysnap.cluster.gpu_room import known_gpu_bytes
from raysnap.config.parts import ShapesConfig
from raysnap.config.sweep import PRESETS, FinetuneConfig, SweepConfig
from raysnap.datasets.dataset import Dataset
from raysnap.datasets.splits import training_splits
from raysnap.models.block_facts import num_body_blocks
from raysnap.planning.forecast import TRIAL_OVERHEAD_S, forecast
from raysnap.planning.sweep import plan_sweep
from raysnap.runs.shortlist import TRAINING_DIR, ShortlistedStart, TimePlan, take_starts
from raysnap.system import num_cpus

SEARCH_SHARE = 0.25  # of a time budget, at most, for the search
RESERVE_SHARE, LEAST_RESERVE_S = 0.05, 15.0  # for starting Ray, storing and reporting
ASHA_SHARE = 0.6  # of all planned epochs that run, as ASHA stops most fine-tunes early
MIN_EPOCHS = 2
MIN_BATCH = 16
MAX_STRETCH = 4  # times the epochs that would do, where a time budget has room for them
TRAINING_SHARE = 0.9  # of the time for training that epochs take; the rest is for what is around them
LEAST_SHARE_S = 1.0
FEWEST = "quick"  # the preset with the fewest recipes


def with_min_steps(config: FinetuneConfig, dataset: Dataset | None) -> FinetuneConfig:
    """Return the configuration with batches so small and epochs so many that a fine-tune takes `min_steps` steps.

    Smaller batches come first: they take more steps in the same number of forward passes.

    Args:
        dataset: what is trained on; None for a built-in one that is yet to be drawn.
    """
    if dataset is None:
        num_train = (config.shapes or ShapesConfig()).num_train
    else:
        num_train = len(training_splits(dataset, config.seed, config.num_train)["train"])

    def num_steps(batch_size: int) -> int:
        return -(-num_train // batch_size)

    batch_size, epochs = config.train.batch_size, config.train.epochs
    while batch_size >= 2 * MIN_BATCH and num_steps(batch_size) * epochs < config.min_steps:
        batch_size //= 2
    epochs = max(epochs, -(-config.min_steps // num_steps(batch_size)))
    train = config.train.model_copy(update={"batch_size": batch_size, "epochs": epochs})
    return config.model_copy(
        update={"train": train, "grace_epochs": _scaled(config.grace_epochs, epochs, config.train.epochs)}
    )


def _scaled(grace_epochs: int, epochs: int, of: int) -> int:
    """Return the epochs before ASHA may stop a fine-tune where more epochs than `of` are trained: as large a share."""
    return max(grace_epochs, round(grace_epochs * epochs / of))


def sweep_config(
    config: FinetuneConfig,
    dataset_dir: Path,
    starts: Sequence[ShortlistedStart],
    epochs: int,
    time: TimePlan | None = None,
    recipes: str | None = None,
) -> SweepConfig:
    """Return the sweep that fine-tunes from these starts.

    Args:
        recipes: the preset whose recipes are tried in place of the configuration's own.
        dataset_dir: the dataset's folder.
        epochs: of each fine-tune, at most.
        time: for how long is trained; None is as long as it takes.
    """
    train = config.train.model_copy(update={"epochs": epochs}).model_dump(mode="json")
    architectures = list(dict.fromkeys(start.architecture for start in starts))
    space = PRESETS[recipes]["space"] if recipes else config.model_dump(mode="json")["space"]
    fewest = min(num_body_blocks(architecture) for architecture in architectures)
    sweep = SweepConfig.model_validate(
        {
            "seed": config.seed,
            "run_dir": config.run_dir / TRAINING_DIR,
            "storage_path": f"{config.storage_path}/{TRAINING_DIR}" if config.storage_path else None,
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
            "grace_epochs": min(_scaled(config.grace_epochs, epochs, config.train.epochs), epochs),
            "reduction_factor": config.reduction_factor,
            "time_budget_s": time.stop_s if time else None,
            "keep": "best",
            **{key: getattr(config, key) for key in ("num_train", "num_val", "num_test", "prefix_cache_bytes")},
            "trackers": config.trackers,
            "resources": config.resources,
            **({"shapes": config.shapes} if config.shapes else {}),
        }
    )
    return sweep if time is None else _sharing_time(sweep, time.training_s)


def _sharing_time(sweep: SweepConfig, training_s: float) -> SweepConfig:
    """Return the sweep with an equal share of the time for each fine-tune, so that each can be kept when time is over.

    A machine that is slower than forecast then trains fewer epochs; what was best so far is kept and tested. Those that
    ASHA stops leave their shares to the others.
    """
    if sweep.resources.num_workers:
        return sweep
    num_trials = len(plan_sweep(sweep).trials)
    num_places = len(known_gpu_bytes()) or max(1, int(num_cpus() // sweep.resources.cpus))
    at_once = min(num_trials, num_places, sweep.resources.max_concurrent or num_places)
    waves = num_trials / at_once
    full_waves = max(1.0, waves * (ASHA_SHARE if sweep.scheduler == "asha" else 1.0))
    share_s = TRAINING_SHARE * training_s / full_waves - TRIAL_OVERHEAD_S
    if waves > 1:  # the first ones end in good time, even if the machine got slower meanwhile
        share_s = min(share_s, training_s / 2)
    share_s = max(LEAST_SHARE_S, share_s)
    limit_s = min(share_s, sweep.train.time_limit_s or share_s)
    return sweep.model_copy(update={"train": sweep.train.model_copy(update={"time_limit_s": limit_s})})


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
    """Return the space with no more learning rates than the smallest net has trained blocks to give them to."""
    entries = space.get("train.layer_lrs")
    if entries is None:
        return space
    listed = entries if isinstance(entries, list) else [entries]
    fitted = [_fitted_entry(entry, 1 + _fewest_trained(space, entry, num_blocks)) for entry in listed]
    return space | {"train.layer_lrs": fitted}


def _fewest_trained(space: dict[str, Any], entry: dict[str, Any], num_blocks: int) -> int:
    """Return how many of the blocks between stem and head are trained, where an entry is for one depth of a grid."""
    depths = space.get("retrain")
    depths = depths.get("grid") if isinstance(depths, dict) else None
    label = (entry.get("when") or {}).get("retrain")
    depth = depths.get(label) if isinstance(depths, dict) and isinstance(label, str) else None
    frozen = depth.get("freeze_fraction") if isinstance(depth, dict) else None
    return num_blocks if frozen is None else round((1 - frozen) * num_blocks)


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


@dataclass(frozen=True)
class Fit:
    """How much is trained so that it fits a time.

    Attributes:
        num_starts: how many of the starts, as `take_starts` takes them.
        epochs: of each fine-tune, at most.
        recipes: the preset whose recipes are tried in place of the configuration's own; None for its own.
        forecast_s: what that is forecast to take.
    """

    num_starts: int
    epochs: int
    recipes: str | None = None
    forecast_s: float = 0.0


def fit_to_time(
    config: FinetuneConfig, dataset_dir: Path, starts: Sequence[ShortlistedStart], training_s: float
) -> Fit:
    """Return how much is trained so that it is forecast to fit the time left.

    Where there is time for more than the preset's epochs, more are trained. Where there is less, first epochs go, down
    to a third; then recipes, to those of the preset `quick`, unless they are the configuration's own; then starts, as a
    shortlist is worth more than recipes; then epochs again.
    """
    steps = _steps(config, len(starts))
    chosen = steps[-1]
    low, high = 0, len(steps) - 1
    while low <= high:  # what a step takes falls from step to step
        middle = (low + high) // 2
        step = steps[middle]
        needed_s = forecast_s(config, dataset_dir, take_starts(starts, step.num_starts), step.epochs, step.recipes)
        if needed_s <= training_s or middle == len(steps) - 1:
            chosen, high = replace(step, forecast_s=needed_s), middle - 1
        else:
            low = middle + 1
    return chosen


def _steps(config: FinetuneConfig, num_starts: int) -> list[Fit]:
    most = config.train.epochs
    third = min(most, max(MIN_EPOCHS, -(-most // 3)))
    is_presets = config.preset != FEWEST and config.space == _preset_space(config.preset)
    recipes = FEWEST if is_presets else None
    longest = most if config.min_steps == 0 else MAX_STRETCH * most
    steps = [Fit(num_starts, epochs) for epochs in range(longest, third - 1, -1)]
    steps += [Fit(count, third, recipes) for count in range(num_starts, 0, -1)]
    return steps + [Fit(1, epochs, recipes) for epochs in range(third - 1, MIN_EPOCHS - 1, -1)]


def _preset_space(preset: str) -> Any:
    return FinetuneConfig.model_validate({"dataset": "any", "preset": preset}).space


def forecast_s(
    config: FinetuneConfig,
    dataset_dir: Path,
    starts: Sequence[ShortlistedStart],
    epochs: int,
    recipes: str | None = None,
) -> float:
    """Return how long the fine-tunes are forecast to take here, in seconds: a rough figure."""
    sweep = sweep_config(config, dataset_dir, starts, epochs, recipes=recipes)
    needed = forecast(sweep, plan_sweep(sweep))
    gpus = known_gpu_bytes()
    total_s = needed.gpu_s / len(gpus) if gpus else needed.cpu_s
    return ASHA_SHARE * total_s if sweep.scheduler == "asha" else total_s
