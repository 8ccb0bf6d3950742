"""What finetune, recommend and predict print: tables and lines made from results."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from raysnap.cli.console import simple_table
from raysnap.cli.search_tables import interval_text
from raysnap.humanize import plural, score_text, seconds_text
from raysnap.runs.shortlist import base_text, first_start_text

if TYPE_CHECKING:
    from raysnap.config.folders import StorePath
    from raysnap.config.sweep import FinetuneConfig
    from raysnap.jobs.finetune import FinetuneSummary
    from raysnap.search.recommend import Recommendation


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """Return what a fine-tune was sampled with, in few words."""
    shown = (
        f"{key.rpartition('.')[2].replace('_', ' ')} {f'{value:g}' if isinstance(value, float) else value}"
        for key, value in recipe.items()
    )
    return ", ".join(shown) or "as configured"


def starts_table(summary: FinetuneSummary) -> Table:
    """Return what the search said of each start, and beside it what came."""
    best = summary.best["trial"] if summary.best else None
    rows = [
        (
            start.rank,
            start.name,
            score_text(start.score) if start.score is not None else None,
            interval_text(start.low, start.high),
            start.num_scored,
            score_text(start.val_accuracy),
            score_text(start.test_accuracy),
            recipe_text(start.recipe) if start.trial else None,
            "kept" if start.trial is not None and start.trial == best else "",
            start.snapshot[:12],
        )
        for start in summary.starts
    ]
    columns = ["rank", "start", "score", "95 % interval", "items", "came: val", "test", "by recipe", "", "id"]
    return simple_table(columns, rows, numeric=["rank", "score", "items", "came: val", "test"])


def outcome_lines(summary: FinetuneSummary, config: FinetuneConfig) -> str:
    """Say what was kept, what the search's prediction was worth, how the time went, and what to do next."""
    training = summary.training
    counts = [f"{training.num_done} of {plural(training.num_trials, 'fine-tune')} trained to the end"]
    counts += [f"{training.num_stopped} stopped early"] if training.num_stopped else []
    counts += [f"{training.num_left} not started in time"] if training.num_left else []
    counts += [f"{training.num_failed} failed"] if training.num_failed else []
    lines = [f"{', '.join(counts)}."]
    if summary.time:
        lines.append(time_line(summary.time.__dict__))
    if summary.best is None:
        more = "a larger --time-budget, --preset quick" if summary.time else "the failures above"
        return "\n".join([*lines, f"Nothing was kept, as no fine-tune was trained to its end: see {more}."])
    best = summary.best
    tested = best["metrics"].get("test_accuracy")
    test = f", test accuracy {score_text(tested)}" if tested is not None else ""
    lines.append(
        f"Kept: {best['name']} ({best['snapshot'][:12]}), from {best['start']} by {recipe_text(best['recipe'])}: "
        f"{training.metric.replace('_', ' ')} {score_text(best['metrics'].get(training.metric))}{test}."
    )
    lines += [line for line in (base_line(summary), prediction_line(summary)) if line]
    store = shlex.quote(str(config.store))
    lines += [
        "Next:",
        f"  raysnap predict --model {best['name']} --store {store} --data FOLDER --out predictions.csv",
        f"  raysnap store export {best['name']} --store {store} --to {best['name']}.safetensors",
    ]
    return "\n".join(lines)


def base_line(summary: FinetuneSummary) -> str:
    """Say what the kept model gained over the best fine-tune of a base, where it started from another snapshot."""
    bases = [start for start in summary.starts if start.is_base and start.test_accuracy is not None]
    won = next((start for start in summary.starts if summary.best and start.trial == summary.best["trial"]), None)
    if won is None or won.is_base or won.test_accuracy is None or not bases:
        return ""
    base = max(bases, key=lambda start: start.val_accuracy or 0.0)
    return f"{base_text(base.name, base.test_accuracy or 0.0, won.test_accuracy)}."


def prediction_line(summary: FinetuneSummary) -> str:
    """Say what taking the search's first would have lost, against the best of the shortlist, and what was expected."""
    starts = [
        (start.rank, start.name, start.val_accuracy or 0.0, start.test_accuracy)
        for start in summary.starts
        if start.rank is not None and start.test_accuracy is not None
    ]
    return first_start_text(starts, summary.expected_loss)


def time_line(time_s: Mapping[str, float]) -> str:
    """Say how a time budget was divided."""
    return (
        f"Time budget {seconds_text(time_s['budget_s'])}: start and search took {seconds_text(time_s['searched_s'])}, "
        f"training had {seconds_text(time_s['training_s'])} (forecast {seconds_text(time_s['forecast_s'])}), "
        f"{seconds_text(time_s['reserve_s'])} were kept for Ray's start and storing."
    )


def recommendation_table(result: Recommendation) -> Table:
    """Return the snapshots that records recommend."""
    rows = [
        (line.rank, line.name, f"{line.standing:.2f}", line.num_datasets, line.architecture, line.snapshot[:12])
        for line in result.ranking
    ]
    columns = ["", "snapshot", "standing", "datasets", "architecture", "id"]
    return simple_table(columns, rows, numeric=["", "standing", "datasets"])


def recommendation_lines(result: Recommendation, store_dir: StorePath, data: str) -> str:
    """Say what a recommendation rests on, and what to do next."""
    store, data = shlex.quote(str(store_dir)), shlex.quote(data)
    if not result.num_records:
        return (
            f"The store has no records of fine-tunes on other datasets to rank its "
            f"{plural(result.num_snapshots, 'snapshot')} by; `raysnap search --data {data} --store {store}` ranks them "
            "by their features."
        )
    return (
        f"\nBy {plural(result.num_records, 'fine-tune')} on {plural(result.num_datasets, 'other dataset')}, of "
        f"{plural(result.num_snapshots, 'snapshot')}. A standing is the expected place among starts: 1 is the best, 0 "
        "the worst, 0.5 where nothing is known.\nNext:\n"
        f"  raysnap search --data {data} --store {store}\n"
        f"  raysnap finetune --data {data} --store {store} --from {result.ranking[0].snapshot[:12]}"
    )


def metrics_line(metrics: Mapping[str, float], num_images: int, num_classes: int) -> str:
    """Return the metrics of a model on a split; without top-5 accuracy where there are five classes at most."""
    told = {name: value for name, value in metrics.items() if name != "top5_accuracy" or num_classes > 5}
    shown = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in told.items())
    return f"{plural(num_images, 'test item')}: {shown}"
