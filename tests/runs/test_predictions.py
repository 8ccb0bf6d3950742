"""Test predictions read back: recall, precision, F1, mistakes, and files that can't be used."""

from pathlib import Path

import pytest

from raysnap.runs.predictions import Prediction, Predictions, read_predictions
from raysnap.runs.run import read_run
from raysnap.runs.sweep_results import sweep_of
from tests.support.report_runs import grid_sweep


def predictions_of(pairs: list[tuple[int, int]]) -> Predictions:
    """Predictions for (class, predicted class), with growing confidence."""
    items = [Prediction(Path(str(n)), label, predicted, n / 10) for n, (label, predicted) in enumerate(pairs)]
    return Predictions(("cat", "dog", "owl"), tuple(items))


def test_recall_is_by_class_and_precision_by_prediction():
    found = predictions_of([(0, 0), (0, 0), (0, 1), (1, 1)])
    assert (found.recall(0), found.recall(1)) == (pytest.approx(2 / 3), 1.0)
    assert (found.precision(0), found.precision(1)) == (1.0, 0.5)


def test_a_class_without_images_or_predictions_has_no_figures():
    found = predictions_of([(0, 0)])
    assert (found.recall(2), found.precision(2), found.f1(2)) == (None, None, 0.0)


def test_macro_f1_averages_classes_that_occur():
    assert predictions_of([(0, 0), (1, 0)]).macro_f1 == pytest.approx((2 / 3 + 0) / 2)


def test_mistakes_are_ordered_by_confidence():
    mistakes = predictions_of([(0, 1), (1, 1), (1, 0)]).mistakes
    assert [item.confidence for item in mistakes] == [0.2, 0.0]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"classes": ["a"], "paths": ["x"], "labels": [7]}'])
def test_a_file_that_cant_be_used_is_no_predictions(tmp_path, content):
    run = read_run(grid_sweep(tmp_path / "run", tmp_path / "pets"))
    best = sweep_of(run).best
    assert len(read_predictions(run, best).items) == 18
    (run.run_dir / best.predictions).write_text(content)
    assert read_predictions(run, best) is None
