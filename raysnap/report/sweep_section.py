"""What a report says of a sweep: the best trials, what each parameter does, where training overfits, what it cost."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from raysnap.config.choices import Status
from raysnap.humanize import plural, seconds_text, seconds_unit
from raysnap.report import bar_charts, line_charts, sweep_charts
from raysnap.report import headlines as summary
from raysnap.report.tables import Column, DataTable, Row, without_empty
from raysnap.report.thumbnails import thumbnails
from raysnap.runs.predictions import Prediction, Predictions, read_predictions
from raysnap.runs.run import Run
from raysnap.runs.sweep_results import Parameter, Sweep, choice_text, point_text, sweep_of, training_s, value_text
from raysnap.runs.trial_rows import TrialRow

MAX_TRIALS_SHOWN = 12
MAX_LOSS_PANELS = 12
MAX_BARS = 48
MAX_CONFUSED_CLASSES = 40
NUM_MISTAKES, NUM_RIGHT = 24, 12

COSTS = (
    bar_charts.Segment("train", "training", "phase-inference"),
    bar_charts.Segment("evaluate", "evaluation", "phase-decode"),
    bar_charts.Segment("prefix", "outputs of frozen blocks", "phase-load"),
)


def sweep_section(run: Run) -> dict[str, Any] | None:
    """Everything that the page shows of a sweep; None where the run is none."""
    sweep = sweep_of(run)
    if sweep is None:
        return None
    return {
        "sweep": sweep,
        "leaders": _leaders(sweep),
        "told": [summary.comparison_sentence(one, sweep) for one in sweep.comparisons],
        "comparisons": _comparisons(sweep),
        "effects": _effects(sweep),
        "threads": _threads(sweep),
        "num_stopped": sum(trial.status == Status.STOPPED for trial in sweep.trials),
        "costs": _costs(sweep),
        "costs_table": _costs_table(sweep),
        "losses": _losses(sweep),
        "overfit": _overfit(sweep),
    }


def predictions_section(run: Run) -> dict[str, Any] | None:
    """How the best trial that left predictions sees the test images."""
    sweep = sweep_of(run)
    ordered = sweep.ranked if sweep else sorted(run.done_trials, key=lambda trial: -(trial.val_accuracy or 0.0))
    for trial in ordered:
        found = read_predictions(run, trial)
        if found is not None:
            return _predictions(trial, found)
    return None


def _leaders(sweep: Sweep) -> DataTable:
    rows = [
        Row(
            {"rank": rank, "objective": trial.objective, "trial": trial.name}
            | {one.key: value_text(trial.point[one.key]) for one in sweep.parameters if one.key in trial.point}
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
        *(Column(one.key, one.label, "name", one.key) for one in sweep.parameters),
        Column("best_epoch", "kept epoch", "count", "the epoch whose weights were kept"),
        Column("epochs", "of", "count", "epochs that were trained"),
        Column("test_accuracy", "test acc.", "score"),
        Column("test_top5_accuracy", "test top-5", "score"),
        Column("test_macro_f1", "test macro-F1", "score"),
        Column("training_s", "training", "seconds"),
        Column("ending", "ended"),
    ]
    caption = f"Trials of the sweep by {sweep.metric_name}, best first"
    return DataTable("sweep_trials", caption, without_empty(columns, rows), tuple(rows), num_shown=MAX_TRIALS_SHOWN)


def _ending(trial: TrialRow) -> str:
    names = {"patience": "stopped early", "scheduler": "by the scheduler", "time_budget": "out of time"}
    return names.get(trial.stopped or "", trial.stopped or "")


def _comparisons(sweep: Sweep) -> DataTable | None:
    rows = tuple(
        Row(
            {
                "parameter": one.parameter.key,
                "better": value_text(one.better),
                "worse": value_text(one.worse),
                "num_pairs": one.num_pairs or None,
                "num_better": one.num_better if one.num_pairs else None,
                "gain": one.gain,
                "least_gain": one.least_gain if one.num_pairs else None,
                "most_gain": one.most_gain if one.num_pairs else None,
                "time_ratio": one.time_ratio,
            }
        )
        for one in sweep.comparisons
    )
    columns = (
        Column("parameter", "parameter", "name"),
        Column("better", "better", "name"),
        Column("worse", "than", "name"),
        Column("num_pairs", "pairs", "count", "pairs of finished trials that differ in nothing else"),
        Column("num_better", "won", "count", "pairs in which it is better"),
        Column("gain", "gain", "score", f"mean gain in {sweep.metric_name}; of medians where there is no pair"),
        Column("least_gain", "least", "score"),
        Column("most_gain", "most", "score"),
        Column("time_ratio", "training time", "ratio", "training time over the other's, geometric mean"),
    )
    return DataTable("comparisons", "What each value is worth against another", columns, rows) if rows else None


def _effects(sweep: Sweep) -> list[Markup]:
    y_range = line_charts.shared_range([trial.objective for trial in sweep.ranked])
    return [Markup(_effect(sweep, one, y_range)) for one in sweep.parameters if sweep.ranked]


def _effect(sweep: Sweep, parameter: Parameter, y_range: tuple[float, float]) -> str:
    trials = [trial for trial in sweep.ranked if parameter.key in trial.point]
    dots = [_dot(sweep, parameter, trial) for trial in trials]
    if not parameter.is_categorical and dots:
        return sweep_charts.effect_points(parameter.label, dots, sweep.metric_name, y_range, is_log=parameter.is_log)
    groups: dict[str, list[sweep_charts.Dot]] = {value_text(value): [] for value in parameter.values}
    for trial, dot in zip(trials, dots, strict=True):
        groups[value_text(trial.point[parameter.key])].append(dot)
    return sweep_charts.effect_boxes(parameter.label, groups, sweep.metric_name, y_range)


def _dot(sweep: Sweep, parameter: Parameter, trial: TrialRow) -> sweep_charts.Dot:
    x = float(trial.point[parameter.key]) if parameter.is_numeric else None
    return sweep_charts.Dot(x, trial.objective, _hint(sweep, trial), trial.is_done, trial is sweep.best)


def _hint(sweep: Sweep, trial: TrialRow) -> str:
    reached = f"{trial.name}: {sweep.metric_name} {sweep.objective_text(trial.objective)}"
    return ", ".join(told for told in (reached, point_text(trial, sweep.parameters), _ending(trial)) if told)


def _threads(sweep: Sweep) -> Markup | None:
    """Parallel coordinates of the parameters and the objective; None where they would say nothing more."""
    if len(sweep.parameters) < 2 or len(sweep.ranked) < 3:
        return None
    axes, places = [], []
    for one in sweep.parameters:
        is_spread = one.is_numeric and (one.is_log or not one.is_categorical)
        if is_spread:
            axis, place = sweep_charts.numeric_axis(
                one.label, [float(value) for value in one.values], is_log=one.is_log
            )
        else:
            axis, place = sweep_charts.value_axis(one.label, [value_text(value) for value in one.values])
        axes.append(axis)
        read = (lambda value: float(value)) if is_spread else value_text
        places.append((one.key, lambda value, place=place, read=read: place(read(value))))
    low, high = line_charts.shared_range([trial.objective for trial in sweep.ranked])
    axis, height = sweep_charts.numeric_axis(sweep.metric_name, [low, high], is_log=False)
    best, worst = sweep.ranked[0].objective, sorted(sweep.ranked, key=lambda trial: trial.objective)
    worst = worst[0].objective if sweep.is_max else worst[-1].objective
    threads = [
        sweep_charts.Thread(
            (
                *(place(trial.point[key]) if key in trial.point else None for key, place in places),
                height(trial.objective),
            ),
            _hint(sweep, trial),
            (trial.objective - worst) / ((best - worst) or 1),
            trial is sweep.best,
        )
        for trial in sweep.ranked
    ]
    title = f"{plural(len(threads), 'trial')} across {plural(len(axes), 'parameter')} to their {sweep.metric_name}"
    return Markup(sweep_charts.parallel_coordinates([*axes, axis], threads, title))


def _costs(sweep: Sweep) -> Markup | None:
    """Training time of each model, in the order of the trials, with the sum so far at the end of each bar."""
    timed = [trial for trial in sweep.trials if training_s(trial) is not None]
    bars, so_far_s = [], 0.0
    for trial in timed:
        so_far_s += training_s(trial)
        values = {segment.key: trial.timings_s.get(segment.key, 0.0) for segment in COSTS}
        name = choice_text(trial, sweep.parameters)
        bars.append(bar_charts.StackedBar(name, values, note=f"{seconds_text(so_far_s)} so far"))
    if not bars or len(bars) > MAX_BARS:
        return None
    title = "Training time of each model and the time up to it in all"
    return Markup(
        bar_charts.stacked_bars(bars, COSTS, title, "time of one model", seconds_text, seconds_unit, name_chars=46)
    )


def _costs_table(sweep: Sweep) -> DataTable | None:
    rows, so_far_s = [], 0.0
    for trial in sweep.trials:
        seconds = training_s(trial)
        if seconds is None:
            continue
        so_far_s += seconds
        values = {"trial": trial.name, "point": point_text(trial, sweep.parameters), "training_s": seconds}
        rows.append(
            Row(values | {"cumulative_s": so_far_s, "wall_s": trial.wall_s, "parameters": trial.num_trained_parameters})
        )
    columns = [
        Column("trial", "trial", "name"),
        Column("point", "what was chosen", "name"),
        Column("parameters", "trained parameters", "count"),
        Column("training_s", "training", "seconds", "training, evaluation and cached outputs of frozen blocks"),
        Column("cumulative_s", "cumulative", "seconds"),
        Column("wall_s", "wall time", "seconds", "with the start of its process, and beside other trials"),
    ]
    caption = "Training time of each model, and the cumulative time"
    return (
        DataTable("training_times", caption, without_empty(columns, rows), tuple(rows), num_shown=20) if rows else None
    )


def _losses(sweep: Sweep) -> list[Markup]:
    """Training and validation loss by epoch of the best trials, with the kept epoch and the early stop marked."""
    shown = [trial for trial in sweep.ranked if trial.curve_of("train_loss") and trial.curve_of("val_loss")]
    shown = shown[:MAX_LOSS_PANELS]
    curves = [trial.curve_of(key) for trial in shown for key in ("train_loss", "val_loss")]
    if not curves:
        return []
    y_range = line_charts.shared_range([0.0, *(y for curve in curves for _, y in curve)])
    x_range = (min(x for curve in curves for x, _ in curve), max(x for curve in curves for x, _ in curve))
    return [Markup(_loss_panel(sweep, trial, x_range, y_range)) for trial in shown]


def _loss_panel(sweep: Sweep, trial: TrialRow, x_range: tuple[float, float], y_range: tuple[float, float]) -> str:
    train, val = trial.curve_of("train_loss"), trial.curve_of("val_loss")
    lines = [
        line_charts.Line("training loss", train, css="train-line"),
        line_charts.Line("validation loss", val, css="val-line", is_broken=trial.has_failed),
    ]
    kept = trial.metrics.get("best_epoch")
    events = [line_charts.Event(kept, "kept epoch", "kept", dict(val).get(kept))] if kept is not None else []
    if trial.stopped:
        events.append(line_charts.Event(val[-1][0], _ending(trial), "ended"))
    name = choice_text(trial, sweep.parameters)
    note = f"{sweep.metric_name} {sweep.objective_text(trial.objective)}" + (
        f", {_ending(trial)}" if _ending(trial) else ""
    )
    return line_charts.line_panel(name, note, lines, x_range, y_range, events=events)


def _overfit(sweep: Sweep) -> Markup | None:
    """Of how many trials the validation loss rose while the training loss still fell."""
    told = [trial for trial in sweep.trials if len(trial.curve_of("val_loss")) > 1 and trial.curve_of("train_loss")]
    if not told:
        return None
    risen = []
    for trial in told:
        val, train = dict(trial.curve_of("val_loss")), dict(trial.curve_of("train_loss"))
        lowest = min(val, key=lambda epoch: val[epoch])
        last = max(val)
        if val[last] > val[lowest] and train.get(last, 0.0) < train.get(lowest, 0.0):
            risen.append(val[last] - val[lowest])
    if not risen:
        return Markup("No trial overfits: validation loss is nowhere above its lowest while training loss still falls.")
    text = Markup(
        "{} of {} overfit: training loss still falls while validation loss rises, up to {:.3f} above its lowest."
    )
    return text.format(len(risen), plural(len(told), "trial"), max(risen))


def _predictions(trial: TrialRow, found: Predictions) -> dict[str, Any]:
    classes = found.classes
    totals = [found.num_images(index) for index in range(len(classes))]
    title = f"Confusion matrix of {trial.name} on {plural(len(found.items), 'test image')}"
    matrix = (
        Markup(sweep_charts.confusion_matrix(classes, found.confusion, totals, title))
        if len(classes) <= MAX_CONFUSED_CLASSES
        else None
    )
    mistakes = found.mistakes
    right = sorted((item for item in found.items if item.is_right), key=lambda item: item.confidence)
    return {
        "trial": trial.name,
        "accuracy": found.accuracy,
        "macro_f1": found.macro_f1,
        "num_items": len(found.items),
        "num_mistakes": len(mistakes),
        "matrix": matrix,
        "classes": _classes_table(found),
        "confused": _confused_table(found),
        "wrong_pictures": _pictures(mistakes[:NUM_MISTAKES], classes),
        "right_pictures": _pictures(right[:NUM_RIGHT], classes),
    }


def _pictures(items: list[Prediction], classes: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {
            "uri": uri,
            "label": classes[item.label],
            "predicted": classes[item.predicted],
            "confidence": item.confidence,
            "is_right": item.is_right,
        }
        for item, uri in zip(items, thumbnails([item.path for item in items]), strict=True)
        if uri
    ]


def _classes_table(found: Predictions) -> DataTable:
    rows = tuple(
        Row(
            {"class": name, "num_images": found.num_images(index), "recall": found.recall(index)}
            | {"precision": found.precision(index), "f1": found.f1(index)}
        )
        for index, name in enumerate(found.classes)
    )
    columns = (
        Column("class", "class", "name"),
        Column("num_images", "test images", "count"),
        Column("recall", "recall", "score", "of its images, the share that was recognised"),
        Column("precision", "precision", "score", "of the images taken for it, the share that is of it"),
        Column("f1", "F1", "score"),
    )
    return DataTable("classes", "How well each class is recognised", columns, rows, num_shown=20)


def _confused_table(found: Predictions) -> DataTable | None:
    pairs = [(count, pair) for pair, count in found.confusion.items() if pair[0] != pair[1]]
    pairs.sort(key=lambda one: (-one[0], one[1]))
    rows = tuple(
        Row(
            {"label": found.classes[label], "predicted": found.classes[predicted], "count": count}
            | {"share": count / found.num_images(label)}
        )
        for count, (label, predicted) in pairs
    )
    columns = (
        Column("label", "true class", "name"),
        Column("predicted", "taken for", "name"),
        Column("count", "images", "count"),
        Column("share", "of the class", "share"),
    )
    return DataTable("confusions", "Which class is taken for which", columns, rows, num_shown=10) if rows else None
