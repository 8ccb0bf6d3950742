"""A finetune, from a dataset to a model: search the store, fine-tune a shortlist as a sweep, name the best one.

Each part is kept as it ends (`shortlist.json`, then the rows of the sweep), so a run that was killed goes on from
there. The sweep stores its best model and writes every fine-tune into the store's records, with what the search said.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raysnap.atomic import write_atomically
from raysnap.config.search_options import SearchOptions
from raysnap.config.sweep import FinetuneConfig
from raysnap.datasets.dataset import Dataset, open_dataset
from raysnap.datasets.splits import check_classes
from raysnap.errors import UsageError
from raysnap.humanize import seconds_text
from raysnap.jobs.sweep import SweepSummary, sweep
from raysnap.planning.finetune import (
    LEAST_RESERVE_S,
    RESERVE_SHARE,
    SEARCH_SHARE,
    fit_to_time,
    sweep_config,
    with_min_steps,
)
from raysnap.planning.sweep import plan_sweep
from raysnap.progress import OnProgress, ignore_progress
from raysnap.runs.run_copy import keep_document
from raysnap.runs.run_directory import RunDirectory, lock_run
from raysnap.runs.run_lock import RunLock
from raysnap.runs.shortlist import (
    MODEL_NAME,
    SEARCH_NAME,
    SHORTLIST_NAME,
    Shortlist,
    ShortlistedStart,
    StartResult,
    TimePlan,
    results_of,
    take_starts,
)
from raysnap.search.result import RankedSnapshot
from raysnap.store.index import SnapshotSummary
from raysnap.store.records import SearchedFrom
from raysnap.store.store import Store
from raysnap.system import since_enter_s
from raysnap.training.trial import slug

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartOutcome:
    """One start of a finetune: what the search said of it, and what came.

    Attributes:
        rank, score, low, high, num_scored: of the search; None where the start was named.
        trial, recipe: the best of its fine-tunes, and what that one was sampled with.
        val_accuracy, test_accuracy: of that fine-tune; the latter of those that were trained to their end.
        num_trials: its fine-tunes that have ended.
        is_base: whether it was fine-tuned from no other snapshot.
    """

    snapshot: str
    name: str
    rank: int | None
    score: float | None
    low: float | None
    high: float | None
    num_scored: int | None
    trial: str | None
    recipe: dict[str, Any]
    val_accuracy: float | None
    test_accuracy: float | None
    num_trials: int
    is_base: bool = False


@dataclass(frozen=True)
class FinetuneSummary:
    """What a finetune left behind.

    Attributes:
        best: `name`, `snapshot`, `start`, `trial`, `recipe` and `metrics` of the model that was kept; None where no
            fine-tune was trained to its end.
        starts: what the search said of each start, and what came.
        expected_loss: what taking the search's first was expected to lose.
        time: how the time budget was divided; None without one.
        training: the sweep.
    """

    run_dir: str
    dataset: str
    best: dict[str, Any] | None
    starts: tuple[StartOutcome, ...]
    expected_loss: float | None
    num_failed: int
    time: TimePlan | None
    training: SweepSummary
    failures: list[dict[str, str]] = field(default_factory=list)


def finetune(
    config: FinetuneConfig,
    *,
    resume: bool = False,
    lock: RunLock | None = None,
    on_progress: OnProgress = ignore_progress,
) -> FinetuneSummary:
    """Search a store for starts for a dataset, fine-tune the best ones on the Ray that is up, and keep the best model.

    >>> job = raysnap.FinetuneConfig(
    ...     dataset="shapes-shape-a", preset="quick", shortlist=1, train={"epochs": 1}, space={"retrain": None},
    ...     store="store", run_dir="runs/finetune",
    ... )
    >>> summary = raysnap.finetune(job)
    >>> summary.best["name"], len(summary.starts)
    ('shapes-shape-a-finetuned', 1)

    Args:
        lock: what holds the run directory for the caller; taken here where it is None.

    Raises:
        RaysnapError: the job can't be started, or no start can be found; fine-tunes that fail are rows, not errors.
        KeyboardInterrupt: Tune was stopped before every fine-tune had ended.
    """
    with lock_run(config, config.run_dir, resume=resume, lock=lock) as held:
        shortlist = choose_starts(config, resume=resume, lock=held, on_progress=on_progress)
        store, dataset = Store.open(config.store), _open(config)
        training = sweep_config(
            with_min_steps(config, dataset),
            dataset.root,
            shortlist.starts,
            shortlist.epochs,
            shortlist.time,
            shortlist.recipes,
        )
        is_begun = (training.run_dir / "config.yaml").exists()
        summary = sweep(
            training,
            plan=plan_sweep(training),
            resume=resume and is_begun,
            searched=_searched(shortlist),
            on_progress=on_progress,
        )
        rows = RunDirectory(training.run_dir).trial_rows()
        results = results_of(shortlist, rows, is_max=training.mode == "max")
        return _summarise(config, store, shortlist, results, summary)


def choose_starts(
    config: FinetuneConfig, *, resume: bool, lock: RunLock, on_progress: OnProgress = ignore_progress
) -> Shortlist:
    """Return the starts of a finetune, searched for unless the configuration names them, or an earlier run chose them.

    Needs no Ray, unless the search has several workers. The run begins once they are chosen: a run that died in its
    search left nothing, and needs no `resume`.

    Raises:
        RaysnapError: the store, the dataset or a start is missing.
    """
    known = Shortlist.read(lock.run_dir)
    if known is not None:
        RunDirectory.open(config, lock, resume=resume)
        return known
    began_s = time.monotonic() - since_enter_s()
    store, dataset = Store.open(config.store), _open(config)
    check_classes(dataset, ("val", "test"))
    trained = with_min_steps(config, dataset)
    if config.starts:
        shortlist = Shortlist(tuple(_named(store, name) for name in config.starts), trained.train.epochs)
    else:
        shortlist = _search(trained, store, dataset, lock.run_dir, on_progress)
    if config.time_budget_s is not None:
        shortlist = _in_time(trained, dataset, shortlist, time.monotonic() - began_s)
    RunDirectory.open(config, lock, resume=resume)
    shortlist.write(lock.run_dir)
    for name in (SHORTLIST_NAME, *([SEARCH_NAME] if shortlist.is_searched else [])):
        keep_document(config.storage_path, lock.run_dir, name)
    return shortlist


def _open(config: FinetuneConfig) -> Dataset:
    return open_dataset(config.dataset, config.data_dir, config.shapes)


def _search(
    config: FinetuneConfig, store: Store, dataset: Dataset, run_dir: Path, on_progress: OnProgress
) -> Shortlist:
    """Search the store, keep the result, and return the best starts, a base among them.

    Each has weights of its own below the head.
    """
    from raysnap.search.ranking import search

    result = search(store, dataset.root, search_options(config), on_progress=on_progress)
    write_atomically(run_dir / SEARCH_NAME, json.dumps(result.to_dict(), indent=2, allow_nan=False) + "\n")
    if not result.ranking:
        raise UsageError(
            f"{store.path}: expected a snapshot that can be searched, found none: {result.skipped[0].error}"
            if result.skipped
            else f"{store.path}: expected a snapshot that can be searched, found none"
        )
    summaries = {summary.id: summary for summary in store.summaries()}
    chosen: dict[str, RankedSnapshot] = {}
    for line in result.ranking:
        chosen.setdefault(summaries[line.snapshot].body, line)
    bases = {summary.body for summary in summaries.values() if summary.base is None}
    starts = [
        replace(_shortlisted(line, summaries[line.snapshot]), is_base=body in bases) for body, line in chosen.items()
    ]
    return Shortlist(
        starts=take_starts(starts, config.shortlist),
        epochs=config.train.epochs,
        method=result.method,
        proxy=result.proxy,
        num_candidates=len(result.ranking),
        expected_loss=result.expected_loss,
        records_share=result.records.share if result.records else 0.0,
    )


def search_options(config: FinetuneConfig) -> SearchOptions:
    """Return how the store is searched: not by test items, and of a time budget in a quarter at most."""
    budget_s = None if config.time_budget_s is None else SEARCH_SHARE * config.time_budget_s
    given = {"seed": config.seed, "data_dir": config.data_dir, "shapes": config.shapes, "time_budget_s": budget_s}
    return config.search.model_copy(update=given | {"spares_test": True})


def _shortlisted(line: RankedSnapshot, summary: SnapshotSummary) -> ShortlistedStart:
    return ShortlistedStart(
        snapshot=line.snapshot,
        name=line.name,
        architecture=line.architecture,
        image_size=summary.image_size,
        dataset=line.dataset,
        retrain_index=line.retrain_index,
        rank=line.rank,
        score=line.score,
        low=line.low,
        high=line.high,
        num_train=line.num_train,
        num_test=line.num_test,
        num_scored=line.num_scored,
        is_tied=line.tied_with_best,
        standing=line.standing,
        num_datasets=line.num_datasets,
        is_trained_on_it=line.is_trained_on_it,
    )


def _named(store: Store, name: str) -> ShortlistedStart:
    manifest = store.manifest(name)
    return ShortlistedStart(
        snapshot=manifest.id,
        name=name,
        architecture=manifest.architecture,
        image_size=manifest.preprocessing.image_size,
        dataset=manifest.dataset.name if manifest.dataset else None,
        retrain_index=manifest.retrain_index,
        is_base=manifest.base is None,
    )


def _in_time(config: FinetuneConfig, dataset: Dataset, shortlist: Shortlist, took_s: float) -> Shortlist:
    """Return the shortlist cut so that its training is forecast to fit what is left of the time budget."""
    assert config.time_budget_s is not None
    budget_s = config.time_budget_s
    reserve_s = max(LEAST_RESERVE_S, RESERVE_SHARE * budget_s)
    training_s = budget_s - took_s - reserve_s
    if training_s <= 0:
        raise UsageError(
            f"time budget: expected more than the {took_s:.0f} s that the start and the search took and the "
            f"{reserve_s:.0f} s that are kept for starting Ray and storing, found {budget_s:.0f} s"
        )
    fit = fit_to_time(config, dataset.root, shortlist.starts, training_s)
    searched_s = took_s if shortlist.is_searched else 0.0
    plan = TimePlan(budget_s, SEARCH_SHARE * budget_s, searched_s, reserve_s, training_s, fit.forecast_s)
    starts = take_starts(shortlist.starts, fit.num_starts)
    if plan.is_short:
        logger.warning(
            "time budget: the least training is forecast to take %s, and %s are left: each fine-tune ends after the "
            "epoch in which its time is over",
            seconds_text(fit.forecast_s),
            seconds_text(training_s),
        )
    return replace(shortlist, starts=starts, epochs=fit.epochs, recipes=fit.recipes, time=plan)


def _searched(shortlist: Shortlist) -> dict[str, SearchedFrom]:
    """Return what the search said of each start, for the store's records; nothing of starts that were named."""
    if not shortlist.is_searched:
        return {}
    return {
        start.snapshot: SearchedFrom(
            method=str(shortlist.method),
            proxy=str(shortlist.proxy),
            rank=start.rank or 0,
            num_candidates=shortlist.num_candidates or 0,
            score=start.score or 0.0,
            num_train=start.num_train or 0,
            num_test=start.num_test or 0,
            expected_loss=shortlist.expected_loss,
        )
        for start in shortlist.starts
    }


def _summarise(
    config: FinetuneConfig,
    store: Store,
    shortlist: Shortlist,
    results: tuple[StartResult, ...],
    training: SweepSummary,
) -> FinetuneSummary:
    best: dict[str, Any] | None = None
    if training.best and training.best["snapshot"]:
        won = next(result for result in results if result.trial and result.trial.trial == training.best["trial"])
        dataset_name = slug(config.dataset)
        best = {
            "name": store.give_name(config.name or f"{dataset_name[:60]}-finetuned", training.best["snapshot"]),
            "snapshot": training.best["snapshot"],
            "start": won.start.name,
            "trial": training.best["trial"],
            "recipe": _recipe_of(training.best["point"]),
            "metrics": training.best["metrics"],
        }
        kept = {key: best[key] for key in ("name", "snapshot")}
        write_atomically(config.run_dir / MODEL_NAME, json.dumps(kept) + "\n")
        keep_document(config.storage_path, config.run_dir, MODEL_NAME)
    return FinetuneSummary(
        run_dir=str(config.run_dir),
        dataset=config.dataset,
        best=best,
        starts=tuple(_outcome(result) for result in results),
        expected_loss=shortlist.expected_loss,
        num_failed=training.num_failed,
        time=shortlist.time,
        training=training,
        failures=training.failures,
    )


def _outcome(result: StartResult) -> StartOutcome:
    start, trial = result.start, result.trial
    shown = {key: getattr(start, key) for key in ("snapshot", "name", "rank", "score", "low", "high", "num_scored")}
    return StartOutcome(
        **shown,
        trial=trial.trial if trial else None,
        recipe=_recipe_of(trial.point) if trial else {},
        val_accuracy=result.val_accuracy,
        test_accuracy=result.test_accuracy,
        num_trials=result.num_trials,
        is_base=start.is_base,
    )


def _recipe_of(point: dict[str, Any]) -> dict[str, Any]:
    """Return what a point says beside its start."""
    return {key: value for key, value in point.items() if key not in ("base.weights", "architecture", "image_size")}
