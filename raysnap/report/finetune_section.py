"""What a report shows of a finetune: the model that was kept, and for each start what was predicted and what came."""

from __future__ import annotations

import shlex
from typing import Any

from markupsafe import Markup

from raysnap.humanize import is_known, plural, score_text, seconds_text
from raysnap.report.charts.dots import scatter
from raysnap.report.charts.lines import shared_range
from raysnap.report.tables import Chip, Column, DataTable, Row, without_empty
from raysnap.runs.questions import short_dataset
from raysnap.runs.run import Run
from raysnap.runs.shortlist import Shortlist, StartResult, TimePlan, base_text, first_start_text, results_of
from raysnap.runs.sweep_results import sweep_of
from raysnap.runs.trial_rows import TrialRow

MIN_DOTS = 3
NOT_RECIPE = ("base.weights", "architecture", "image_size")


def finetune_section(run: Run) -> dict[str, Any] | None:
    """Return everything that the page shows of a finetune; None of other runs."""
    shortlist = run.shortlist
    if shortlist is None:
        return None
    results, kept = _results(run, shortlist), _kept(run)
    return {
        "is_searched": shortlist.is_searched,
        "num_candidates": shortlist.num_candidates or 0,
        "proxy": shortlist.proxy,
        "table": _table(results, kept),
        "chart": _chart(results, shortlist),
        "time": _time_text(shortlist.time) if shortlist.time else None,
        "next_lines": _next_lines(run, kept),
    }


def finetune_headline(run: Run) -> Markup:
    """Return the main result of a finetune: how good the model is that was kept."""
    asked, kept = _asked(run), _kept(run)
    if kept is None:
        return Markup("No model for {} yet: no fine-tune was trained to its end").format(asked)
    if kept.test_accuracy is not None:
        return Markup("{} of the test images of {} are right").format(_percent(kept.test_accuracy), asked)
    return Markup("{} of the validation images of {} are right").format(_percent(kept.val_accuracy), asked)


def finetune_sentences(run: Run, shortlist: Shortlist) -> list[Markup]:
    """Say which model was kept, and what the search's prediction was worth."""
    results, kept = _results(run, shortlist), _kept(run)
    found = []
    if kept is not None:
        won = next((result for result in results if result.trial is kept), None)
        stored = Markup(", stored as <b class='name'>{}</b>").format(run.model_name or kept.snapshot_name or kept.trial)
        found.append(
            Markup("The best of {} started from <b class='name'>{}</b> ({}): val accuracy <b>{}</b>{}{}.").format(
                plural(sum(result.num_trials for result in results), "fine-tune"),
                won.start.name if won else kept.base or "an unknown snapshot",
                recipe_text(kept),
                score_text(kept.val_accuracy),
                f", test accuracy {score_text(kept.test_accuracy)}" if kept.test_accuracy is not None else "",
                stored if kept.snapshot else "",
            )
        )
        found += _against_base(won, results)
    return [*found, *_prediction(results, shortlist)]


def _against_base(won: StartResult | None, results: tuple[StartResult, ...]) -> list[Markup]:
    """Say what the kept model gained over the best fine-tune of a base, where it started from another snapshot."""
    bases = [one for one in results if one.start.is_base and one.test_accuracy is not None]
    if won is None or won.test_accuracy is None or not bases:
        return []
    if won.start.is_base:
        return [Markup("It started from a base: no fine-tuned start did better by validation.")]
    base = max(bases, key=lambda one: one.val_accuracy or 0.0)
    return [Markup("{}.").format(base_text(base.start.name, base.test_accuracy or 0.0, won.test_accuracy))]


def _prediction(results: tuple[StartResult, ...], shortlist: Shortlist) -> list[Markup]:
    """Say what taking the search's first start would have lost, and what the search expected of that."""
    starts = [
        (result.start.rank, result.start.name, result.val_accuracy or 0.0, result.test_accuracy)
        for result in results
        if result.start.rank is not None and result.test_accuracy is not None
    ]
    said = first_start_text(starts, shortlist.expected_loss)
    return [Markup("{}").format(said)] if said else []


def recipe_text(trial: TrialRow) -> str:
    """Return what a fine-tune was sampled with beside its start, in few words."""
    shown = [
        f"{key.rpartition('.')[2].replace('_', ' ')} {f'{value:g}' if isinstance(value, float) else value}"
        for key, value in trial.point.items()
        if key not in NOT_RECIPE
    ]
    return ", ".join(shown) or "as configured"


def _results(run: Run, shortlist: Shortlist) -> tuple[StartResult, ...]:
    sweep = sweep_of(run)
    return results_of(shortlist, run.finetunes, is_max=sweep.is_max if sweep else True)


def _kept(run: Run) -> TrialRow | None:
    sweep = sweep_of(run)
    return sweep.best if sweep else None


def _asked(run: Run) -> Markup:
    return Markup('<span class="name">{}</span>').format(short_dataset(str(run.config.get("dataset") or "")))


def _percent(share: float | None) -> str:
    return f"{(share or 0.0) * 100:.1f}\u00a0%"


def _table(results: tuple[StartResult, ...], kept: TrialRow | None) -> DataTable:
    rows = []
    for result in results:
        start, trial = result.start, result.trial
        values = {
            "rank": start.rank,
            "name": start.name,
            "dataset": start.dataset,
            "architecture": start.architecture,
            "score": start.score,
            "interval": f"{score_text(start.low)} to {score_text(start.high)}" if is_known(start.low) else None,
            "num_scored": start.num_scored,
            "standing": start.standing,
            "val_accuracy": result.val_accuracy,
            "test_accuracy": result.test_accuracy,
            "recipe": recipe_text(trial) if trial else None,
            "num_trials": result.num_trials,
            "snapshot": start.snapshot,
        }
        is_kept = kept is not None and trial is kept
        chips: dict[str, tuple[Chip, ...]] = {}
        if start.is_trained_on_it:
            chips["dataset"] = (("this very one", "warn"),)
        if is_kept:
            chips["name"] = (("kept", ""),)
        elif start.is_base:
            chips["name"] = (("base", ""),)
        elif start.is_tied and start.rank != 1:
            chips["name"] = (("tied by score", ""),)
        rows.append(Row(values, chips, css="first" if is_kept else ""))
    architectures = {result.start.architecture for result in results}
    columns = [
        Column("rank", "rank", "count", "by the search"),
        Column("name", "start", "name"),
        Column("dataset", "trained on", "name"),
        Column("architecture", "architecture", "name", is_on_page=len(architectures) > 1),
        Column("score", "predicted: score", "score"),
        Column("interval", "95 % interval", "span", "by the luck of the items that the score rests on"),
        Column("num_scored", "items", "count", "items that the score rests on"),
        Column("standing", "standing", "score", "expected place among starts, by records of other datasets"),
        Column("val_accuracy", "came: val acc.", "score"),
        Column("test_accuracy", "came: test acc.", "score"),
        Column("recipe", "by recipe"),
        Column("num_trials", "fine-tunes", "count"),
        Column("snapshot", "id", is_on_page=False),
    ]
    is_ranked = any(result.start.rank is not None for result in results)
    order = "as the search ranked them" if is_ranked else "as they were named"
    caption = f"Starts {order}, and the best fine-tune of each"
    return DataTable("starts", caption, without_empty(columns, rows), tuple(rows))


def _chart(results: tuple[StartResult, ...], shortlist: Shortlist) -> Markup | None:
    """Draw predicted scores against what came; too few dots show nothing, and other rungs' scores are left out."""
    scored = [result for result in results if result.start.score is not None and result.test_accuracy is not None]
    rung = (scored[0].start.num_train, scored[0].start.num_test) if scored else None
    points = [
        (result.start.score, result.test_accuracy, f"{result.start.name}: predicted {result.start.score:.3f}")
        for result in scored
        if (result.start.num_train, result.start.num_test) == rung
    ]
    dots = [(x, y, f"{hint}, came {y:.3f}") for x, y, hint in points if x is not None and y is not None]
    if len(dots) < MIN_DOTS:
        return None
    return Markup(
        scatter(
            dots,
            "Predicted score against test accuracy after fine-tuning",
            f"{shortlist.proxy} score",
            "test accuracy after fine-tuning",
            shared_range([x for x, _, _ in dots]),
            shared_range([y for _, y, _ in dots]),
        )
    )


def _time_text(time: TimePlan) -> str:
    return (
        f"Of the time budget of {seconds_text(time.budget_s)}, the start and the search took "
        f"{seconds_text(time.searched_s)} (at most {seconds_text(time.search_s)} were for the search); "
        f"{seconds_text(time.reserve_s)} were kept for starting Ray and storing, and training had "
        f"{seconds_text(time.training_s)}; it was forecast to take {seconds_text(time.forecast_s)}."
    )


def _next_lines(run: Run, kept: TrialRow | None) -> str:
    store = shlex.quote(str(run.config.get("store") or "store"))
    if kept is None or kept.snapshot is None:
        return "raysnap finetune … --resume"
    model = run.model_name or kept.snapshot[:12]
    return (
        f"raysnap predict --model {model} --store {store} --data FOLDER --out predictions.csv\n"
        f"raysnap store export {model} --store {store} --to {model}.safetensors"
    )
