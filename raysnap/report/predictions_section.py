"""What a report shows of test predictions: the best model's mistakes, its confusion matrix, each class's figures."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from raysnap.humanize import plural
from raysnap.report.charts.sweeps import confusion_matrix
from raysnap.report.tables import Column, DataTable, Row
from raysnap.report.thumbnails import pictures
from raysnap.runs.predictions import Prediction, Predictions, read_predictions
from raysnap.runs.run import Run
from raysnap.runs.sweep_results import sweep_of
from raysnap.runs.trial_rows import TrialRow

MAX_MATRIX_CLASSES = 40
MAX_WRONG_PICTURES = 24
MAX_RIGHT_PICTURES = 12
MAX_CLASSES_SHOWN = 20
MAX_CONFUSIONS_SHOWN = 10


def predictions_section(run: Run) -> dict[str, Any] | None:
    """Return what the page shows of the best trial that left predictions; None if no trial did."""
    sweep = sweep_of(run)
    ranked = sweep.ranked if sweep else sorted(run.done_trials, key=lambda trial: -(trial.val_accuracy or 0.0))
    for trial in ranked:
        predictions = read_predictions(run, trial)
        if predictions is not None:
            return _section(trial, predictions)
    return None


def _section(trial: TrialRow, predictions: Predictions) -> dict[str, Any]:
    classes, mistakes = predictions.classes, predictions.mistakes
    right = sorted((item for item in predictions.items if item.is_right), key=lambda item: item.confidence)
    return {
        "trial": trial.name,
        "accuracy": predictions.accuracy,
        "macro_f1": predictions.macro_f1,
        "num_items": len(predictions.items),
        "num_mistakes": len(mistakes),
        "matrix": _matrix(trial, predictions) if len(classes) <= MAX_MATRIX_CLASSES else None,
        "classes": _classes_table(predictions),
        "confused": _confusions_table(predictions),
        "wrong_pictures": _pictures(mistakes[:MAX_WRONG_PICTURES], classes),
        "right_pictures": _pictures(right[:MAX_RIGHT_PICTURES], classes),
    }


def _matrix(trial: TrialRow, predictions: Predictions) -> Markup:
    totals = [predictions.num_images(index) for index in range(len(predictions.classes))]
    title = f"Confusion matrix of {trial.name} on {plural(len(predictions.items), 'test item')}"
    return Markup(confusion_matrix(predictions.classes, predictions.confusion, totals, title))


def _pictures(items: list[Prediction], classes: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {
            "picture": picture,
            "label": classes[item.label],
            "predicted": classes[item.predicted],
            "confidence": item.confidence,
            "is_right": item.is_right,
        }
        for item, picture in zip(items, pictures([item.path for item in items]), strict=True)
        if picture
    ]


def _classes_table(predictions: Predictions) -> DataTable:
    rows = tuple(
        Row(
            {"class": name, "num_images": predictions.num_images(index), "recall": predictions.recall(index)}
            | {"precision": predictions.precision(index), "f1": predictions.f1(index)}
        )
        for index, name in enumerate(predictions.classes)
    )
    columns = (
        Column("class", "class", "name"),
        Column("num_images", "test items", "count"),
        Column("recall", "recall", "score", "share of the class's items that were predicted as this class"),
        Column("precision", "precision", "score", "share of the items predicted as this class that belong to it"),
        Column("f1", "F1", "score", "harmonic mean of recall and precision"),
    )
    return DataTable("classes", "Recall, precision and F1 of each class", columns, rows, num_shown=MAX_CLASSES_SHOWN)


def _confusions_table(predictions: Predictions) -> DataTable | None:
    pairs = [(count, pair) for pair, count in predictions.confusion.items() if pair[0] != pair[1]]
    pairs.sort(key=lambda counted: (-counted[0], counted[1]))
    rows = tuple(
        Row(
            {"label": predictions.classes[label], "predicted": predictions.classes[predicted], "count": count}
            | {"share": count / predictions.num_images(label)}
        )
        for count, (label, predicted) in pairs
    )
    columns = (
        Column("label", "true class", "name"),
        Column("predicted", "predicted as", "name"),
        Column("count", "items", "count"),
        Column("share", "share of the class", "share"),
    )
    caption = "Which classes are confused"
    return DataTable("confusions", caption, columns, rows, num_shown=MAX_CONFUSIONS_SHOWN) if rows else None
