"""What a report shows of a sweep: the best trials, the effect of each parameter, overfitting, training time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from raysnap.config.choices import Status
from raysnap.humanize import plural, seconds_text, seconds_unit
from raysnap.report.charts.bars import Segment, StackedBar, stacked_bars
from raysnap.report.charts.lines import Event, Line, line_panel, shared_range
from raysnap.report.charts.sweeps import (
    Axis,
    Dot,
    Trace,
    effect_boxes,
    effect_points,
    numeric_axis,
    parallel_coordinates,
    value_axis,
)
from raysnap.report.headlines import comparison_sentence
from raysnap.report.tables import Column, DataTable, Row, without_empty
from raysnap.runs.run import Run
from raysnap.runs.sweep_results import (
    Parameter,
    Sweep,
    choice_text,
    objective_of,
    point_text,
    sweep_of,
    training_s,
    value_text,
)
from raysnap.runs.trial_rows import TrialRow

MAX_TRIALS_SHOWN = 12
MAX_COSTS_SHOWN = 20
MAX_LOSS_PANELS = 12
MAX_BARS = 48

COSTS = (
    Segment("train", "training", "phase-inference"),
    Segment("evaluate", "evaluation", "phase-decode"),
    Segment("prefix", "outputs of frozen blocks", "phase-load"),
)


def sweep_section(run: Run) -> dict[str, Any] | None:
    """Return everything that the page shows of a sweep; None if the run is none."""
    sweep = sweep_of(run)
    if sweep is None:
        return None
    return {
        "sweep": sweep,
        "leaders": _leaders(sweep),
        "comparison_sentences": [comparison_sentence(comparison, sweep) for comparison in sweep.comparisons],
        "comparisons": _comparisons(sweep),
        "effects": _effects(sweep),
        "traces": _traces(sweep),
        "num_stopped": sum(trial.status == Status.STOPPED for trial in sweep.trials),
        "costs": _costs(sweep),
        "costs_table": _costs_table(sweep),
        "losses": _losses(sweep),
        "overfit": _overfit(sweep),
    }


def _leaders(sweep: Sweep) -> DataTable:
    keys = [parameter.key for parameter in sweep.parameters]
    rows = [
        Row(
            {"rank": rank, "objective": trial.objective, "trial": trial.name}
            | {key: value_text(trial.point[key]) for key in keys if key in trial.point}
            | {"best_epoch": trial.metrics.get("best_epoch"), "epochs": len(trial.epochs) or None}
            | {key: trial.metrics.get(key) for key in ("test_accuracy", "test_top5_accuracy", "test_macro_f1")}
            | {"training_s": training_s(trial), "ending": _ending(trial)},
            css="first" if trial is sweep.best else "",
        )
        for rank, trial in enumerate(sweep.ranked, start=1)
    ]
    kind = "score" if sweep.is_max else "number"
    columns = [
        Column("rank", "rank", "count"),
        Column("objective", sweep.metric_name, kind),
        Column("trial", "trial", "name", is_on_page=len(sweep.parameters) < 2),
        *(Column(parameter.key, parameter.label, "name", parameter.key) for parameter in sweep.parameters),
        Column("best_epoch", "best epoch", "count", "the epoch whose weights were kept"),
        Column("epochs", "epochs", "count", "epochs that were trained"),
        Column("test_accuracy", "test acc.", "score"),
        *([Column("test_top5_accuracy", "test top-5", "score")] if _is_top5_telling(sweep) else []),
        Column("test_macro_f1", "test macro-F1", "score"),
        Column("training_s", "training", "seconds"),
        Column("ending", "ended"),
    ]
    caption = f"Trials of the sweep by {sweep.metric_name}, best first"
    return DataTable("sweep_trials", caption, without_empty(columns, rows), tuple(rows), num_shown=MAX_TRIALS_SHOWN)


def _is_top5_telling(sweep: Sweep) -> bool:
    """Return whether the right class is not always among the five likeliest, as it is where there are five at most."""
    values = [trial.metrics.get("test_top5_accuracy") for trial in sweep.ranked]
    return any(value is not None and value < 1 for value in values)


def _ending(trial: TrialRow) -> str:
    names = {"patience": "stopped early", "scheduler": "stopped by the scheduler", "time_budget": "out of time"}
    names |= {"time_limit": "by its time limit"}
    return names.get(trial.stopped or "", trial.stopped or "")


def _comparisons(sweep: Sweep) -> DataTable | None:
    rows = tuple(
        Row(
            {
                "parameter": comparison.parameter.key,
                "better": comparison.better,
                "worse": comparison.worse,
                "num_pairs": comparison.num_pairs or None,
                "num_better": comparison.num_better if comparison.num_pairs else None,
                "gain": comparison.gain,
                "least_gain": comparison.least_gain if comparison.num_pairs else None,
                "most_gain": comparison.most_gain if comparison.num_pairs else None,
                "time_ratio": comparison.time_ratio,
            }
        )
        for comparison in sweep.comparisons
    )
    columns = (
        Column("parameter", "parameter", "name"),
        Column("better", "better value", "name"),
        Column("worse", "than", "name"),
        Column("num_pairs", "pairs", "count", "pairs of finished trials that differ only in this parameter"),
        Column("num_better", "better in", "count", "pairs in which it is better"),
        Column(
            "gain",
            "gain",
            "score",
            f"mean gain in {sweep.metric_name} over the pairs; of the medians if there is no pair",
        ),
        Column("least_gain", "least", "score"),
        Column("most_gain", "most", "score"),
        Column(
            "time_ratio", "training time", "ratio", "training time divided by that of the other value, geometric mean"
        ),
    )
    return DataTable("comparisons", "Values of each parameter compared", columns, rows) if rows else None


def _effects(sweep: Sweep) -> list[Markup]:
    y_range = shared_range([objective_of(trial) for trial in sweep.ranked])
    return [Markup(_effect(sweep, parameter, y_range)) for parameter in sweep.parameters if sweep.ranked]


def _effect(sweep: Sweep, parameter: Parameter, y_range: tuple[float, float]) -> str:
    trials = [trial for trial in sweep.ranked if parameter.key in trial.point]
    dots = [_dot(sweep, parameter, trial) for trial in trials]
    if not parameter.is_categorical and dots:
        return effect_points(parameter.label, dots, sweep.metric_name, y_range, is_log=parameter.is_log)
    groups: dict[str, list[Dot]] = {value_text(value): [] for value in parameter.values}
    for trial, dot in zip(trials, dots, strict=True):
        groups[value_text(trial.point[parameter.key])].append(dot)
    return effect_boxes(parameter.label, groups, sweep.metric_name, y_range)


def _dot(sweep: Sweep, parameter: Parameter, trial: TrialRow) -> Dot:
    x = float(trial.point[parameter.key]) if parameter.is_numeric else None
    return Dot(x, objective_of(trial), _hint(sweep, trial), trial.is_done, trial is sweep.best)


def _hint(sweep: Sweep, trial: TrialRow) -> str:
    result = f"{trial.name}: {sweep.metric_name} {sweep.objective_text(objective_of(trial))}"
    return ", ".join(filter(None, (result, point_text(trial, sweep.parameters), _ending(trial))))


def _traces(sweep: Sweep) -> Markup | None:
    """Draw parallel coordinates of the parameters and the objective; None if they would add nothing."""
    if len(sweep.parameters) < 2 or len(sweep.ranked) < 3:
        return None
    axes, places = [], []
    for parameter in sweep.parameters:
        axis, place = _parameter_axis(parameter)
        axes.append(axis)
        places.append((parameter.key, place))
    objectives = [objective_of(trial) for trial in sweep.ranked]
    axis, height = numeric_axis(sweep.metric_name, shared_range(objectives), is_log=False)
    best = objectives[0]
    worst = min(objectives) if sweep.is_max else max(objectives)
    traces = [
        Trace(
            (*(place(trial.point[key]) if key in trial.point else None for key, place in places), height(objective)),
            _hint(sweep, trial),
            (objective - worst) / ((best - worst) or 1),
            trial is sweep.best,
        )
        for trial, objective in zip(sweep.ranked, objectives, strict=True)
    ]
    title = f"{plural(len(traces), 'trial')} across {plural(len(axes), 'parameter')} to their {sweep.metric_name}"
    return Markup(parallel_coordinates([*axes, axis], traces, title))


def _parameter_axis(parameter: Parameter) -> tuple[Axis, Callable[[Any], float]]:
    """Return an axis for a parameter, and a function from a sampled value to its place on it."""
    if parameter.is_numeric and (parameter.is_log or not parameter.is_categorical):
        values = [float(value) for value in parameter.values]
        axis, place = numeric_axis(parameter.label, values, is_log=parameter.is_log)
        return axis, lambda value: place(float(value))
    axis, place_of_text = value_axis(parameter.label, [value_text(value) for value in parameter.values])
    return axis, lambda value: place_of_text(value_text(value))


def _costs(sweep: Sweep) -> Markup | None:
    """Draw the training time of each model in the order of the trials, and the running total at each bar."""
    bars = []
    for trial, _, total_s in _training_times(sweep):
        values = {segment.key: trial.timings_s.get(segment.key, 0.0) for segment in COSTS}
        name = choice_text(trial, sweep.parameters)
        bars.append(StackedBar(name, values, note=f"{seconds_text(total_s)} so far"))
    if not bars or len(bars) > MAX_BARS:
        return None
    title = "Training time of each model, and the running total"
    return Markup(stacked_bars(bars, COSTS, title, "time of one model", seconds_text, seconds_unit, name_chars=46))


def _training_times(sweep: Sweep) -> list[tuple[TrialRow, float, float]]:
    """Return (trial, its training time, running total) in seconds of the trials whose time is known."""
    times, total_s = [], 0.0
    for trial in sweep.trials:
        seconds = training_s(trial)
        if seconds is not None:
            total_s += seconds
            times.append((trial, seconds, total_s))
    return times


def _costs_table(sweep: Sweep) -> DataTable | None:
    rows = tuple(
        Row(
            {"trial": trial.name, "point": point_text(trial, sweep.parameters), "training_s": seconds}
            | {"cumulative_s": total_s, "wall_s": trial.wall_s, "parameters": trial.num_trained_parameters}
        )
        for trial, seconds, total_s in _training_times(sweep)
    )
    columns = [
        Column("trial", "trial", "name"),
        Column("point", "sampled values", "name"),
        Column("parameters", "trained parameters", "count"),
        Column("training_s", "training", "seconds", "training, evaluation and cached outputs of frozen blocks"),
        Column("cumulative_s", "running total", "seconds"),
        Column("wall_s", "wall time", "seconds", "including the start of its process, and shared with other trials"),
    ]
    caption = "Training time of each model, and the running total"
    if not rows:
        return None
    return DataTable("training_times", caption, without_empty(columns, rows), rows, num_shown=MAX_COSTS_SHOWN)


def _losses(sweep: Sweep) -> list[Markup]:
    """Draw training and validation loss by epoch of the best trials, with best epoch and early stop marked."""
    trials = [trial for trial in sweep.ranked if trial.curve_of("train_loss") and trial.curve_of("val_loss")]
    trials = trials[:MAX_LOSS_PANELS]
    curves = [trial.curve_of(key) for trial in trials for key in ("train_loss", "val_loss")]
    if not curves:
        return []
    y_range = shared_range([0.0, *(y for curve in curves for _, y in curve)])
    x_range = (min(x for curve in curves for x, _ in curve), max(x for curve in curves for x, _ in curve))
    return [Markup(_loss_panel(sweep, trial, x_range, y_range)) for trial in trials]


def _loss_panel(sweep: Sweep, trial: TrialRow, x_range: tuple[float, float], y_range: tuple[float, float]) -> str:
    train, val = trial.curve_of("train_loss"), trial.curve_of("val_loss")
    lines = [
        Line("training loss", train, css="train-line"),
        Line("validation loss", val, css="val-line", is_broken=trial.has_failed),
    ]
    kept = trial.metrics.get("best_epoch")
    events = [Event(kept, "best epoch", "kept", dict(val).get(kept))] if kept is not None else []
    if trial.stopped:
        events.append(Event(val[-1][0], _ending(trial), "ended"))
    name = choice_text(trial, sweep.parameters)
    result = f"{sweep.metric_name} {sweep.objective_text(objective_of(trial))}"
    note = ", ".join(filter(None, (result, _ending(trial))))
    return line_panel(name, note, lines, x_range, y_range, events=events)


def _overfit(sweep: Sweep) -> str | None:
    """Say for how many trials the validation loss rose while the training loss still fell."""
    trials = [trial for trial in sweep.trials if len(trial.curve_of("val_loss")) > 1 and trial.curve_of("train_loss")]
    if not trials:
        return None
    rises = []
    for trial in trials:
        val, train = dict(trial.curve_of("val_loss")), dict(trial.curve_of("train_loss"))
        lowest, last = min(val, key=lambda epoch: val[epoch]), max(val)
        if val[last] > val[lowest] and train.get(last, 0.0) < train.get(lowest, 0.0):
            rises.append(val[last] - val[lowest])
    if not rises:
        return "No trial overfits: validation loss rises nowhere while training loss still falls."
    counts = f"{len(rises)} of {plural(len(trials), 'trial')} overfit"
    rise = f"validation loss rises by up to {max(rises):.3f} above its minimum while training loss still falls"
    return f"{counts}: {rise}."
