"""What a finetune would search and train, known before anything is written: its dry run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysnap.config.sweep import FinetuneConfig
from raysnap.datasets.dataset import find_dataset, open_dataset
from raysnap.errors import ArchitectureError, UsageError
from raysnap.humanize import count_text, flops_text, plural, seconds_text
from raysnap.models.block_facts import block_shapes
from raysnap.planning.finetune import LEAST_RESERVE_S, RESERVE_SHARE, SEARCH_SHARE, sweep_config, with_min_steps
from raysnap.planning.forecast import Forecast, check_room, forecast
from raysnap.planning.sweep import plan_sweep
from raysnap.runs.shortlist import ShortlistedStart
from raysnap.search.candidates import find_summaries, name_of
from raysnap.store.index import SnapshotSummary
from raysnap.store.store import Store


@dataclass(frozen=True)
class FinetunePlan:
    """What a finetune would do.

    Attributes:
        num_candidates: snapshots that the search would try at most; 0 where the starts are named.
        num_items: images that each of them would see at most; None for a dataset that is drawn first.
        search_flops: of the search, at most: what snapshots share runs once.
        starts: that would be trained; of a search's, those whose training would take the longest stand for them.
        trials: what would be trained.
        time_s: how a time budget would be divided.
    """

    run_dir: str
    num_candidates: int
    num_items: int | None
    search_flops: float | None
    starts: tuple[str, ...]
    trials: tuple[dict[str, Any], ...]
    forecast: Forecast
    time_s: dict[str, float] | None


def plan_finetune(config: FinetuneConfig) -> FinetunePlan:
    """Return what the finetune would do; reads the store's index and folders, writes nothing.

    Raises:
        RaysnapError: the store, the dataset or a start is missing, or the disk has no room.
    """
    store = Store.open(config.store)
    folder = find_dataset(config.dataset, config.data_dir, config.shapes)
    summaries = find_summaries(store, config.search.where)
    limit = config.search.max_candidates or len(summaries)
    if config.starts:
        by_id = {summary.id: summary for summary in store.summaries()}
        chosen, tried = [by_id[store.resolve(start)] for start in config.starts], []
    else:
        distinct = {summary.body: summary for summary in summaries}.values()
        tried = sorted((summary for summary in distinct if _can_run(summary)), key=_flops, reverse=True)[:limit]
        if not tried:
            raise UsageError(f"{config.store}: expected a snapshot to start from, found none that can run")
        chosen = tried[: config.shortlist]
    num_items = dataset = None
    if folder is not None:
        dataset = open_dataset(config.dataset, config.data_dir, config.shapes)
        num_items = sum(len(items) for split, items in dataset.splits.items() if split in ("train", "val"))
    starts = [ShortlistedStart(one.id, name_of(one), one.architecture, one.image_size) for one in chosen]
    trained = with_min_steps(config, dataset)
    training = sweep_config(trained, folder or Path(config.dataset), starts, trained.train.epochs)
    plan = plan_sweep(training)
    needed = forecast(training, plan)
    check_room(training, needed)
    return FinetunePlan(
        run_dir=str(config.run_dir),
        num_candidates=len(tried),
        num_items=num_items,
        search_flops=None if num_items is None else num_items * sum(map(_flops, tried)),
        starts=tuple(start.name for start in starts),
        trials=tuple(trial.model_dump(mode="json") for trial in plan.trials),
        forecast=needed,
        time_s=divided_time(config.time_budget_s),
    )


def divided_time(budget_s: float | None) -> dict[str, float] | None:
    """Return how a time budget is divided: at most so much for the search, at least so much for training."""
    if budget_s is None:
        return None
    reserve_s = max(LEAST_RESERVE_S, RESERVE_SHARE * budget_s)
    search_s = SEARCH_SHARE * budget_s
    return {"search": search_s, "reserve": reserve_s, "training": max(0.0, budget_s - search_s - reserve_s)}


def _can_run(summary: SnapshotSummary) -> bool:
    """Return whether a search can try the snapshot; it names those that it can't, and goes on."""
    try:
        block_shapes(summary.architecture, summary.image_size)
    except ArchitectureError:
        return False
    return True


def _flops(summary: SnapshotSummary) -> float:
    return sum(shape.flops for shape in block_shapes(summary.architecture, summary.image_size))


def plan_lines(plan: FinetunePlan, config: FinetuneConfig) -> str:
    """Say what a finetune would do, and what that would take."""
    lines = []
    if plan.num_candidates:
        items = f"{count_text(plan.num_items)} images" if plan.num_items else "a dataset that is drawn first"
        flops = f", at most {flops_text(plan.search_flops)}" if plan.search_flops else ""
        lines.append(
            f"Search: up to {plural(plan.num_candidates, 'candidate')} of {config.store} on {items}, method "
            f"{config.search.method}, proxy {config.search.proxy}{flops}."
        )
        lines.append(f"Shortlist: the {len(plan.starts)} best; the figures below are of those that take the longest.")
    else:
        lines.append(f"Starts: {', '.join(plan.starts)}; no search.")
    recipes, train = {_recipe_text(trial["point"]) for trial in plan.trials}, plan.trials[0]["train"]
    lines.append(
        f"Training: {plural(len(plan.starts), 'start')} × {plural(len(recipes), 'recipe')}, up to "
        f"{plural(train['epochs'], 'epoch')} in batches of {train['batch_size']} each: {'; '.join(sorted(recipes))}. "
        "ASHA stops most of them early."
    )
    if plan.time_s:
        lines.append(
            f"Time: {seconds_text(config.time_budget_s)}, of which the search takes at most "
            f"{seconds_text(plan.time_s['search'])}, training what is left (at least "
            f"{seconds_text(plan.time_s['training'])}), and {seconds_text(plan.time_s['reserve'])} are kept for "
            "starting Ray and storing. Epochs, recipes and starts are chosen to fit."
        )
    from raysnap.cli.training_tables import forecast_lines

    num_bases = len(plan.starts)
    return "\n".join([*lines, forecast_lines(plan.forecast, len(plan.trials), num_bases)])


def _recipe_text(point: dict[str, Any] | None) -> str:
    taken = ("base.weights", "architecture", "image_size")
    words = [
        f"{key.rpartition('.')[2].replace('_', ' ')} {value}"
        for key, value in (point or {}).items()
        if key not in taken
    ]
    return ", ".join(words) or "as configured"
