"""Test predictions in a report."""

import json

from tests.support.report_pages import render, tables
from tests.support.report_runs import (
    grid_sweep,
    write_images,
)


def test_the_most_confident_mistakes_are_shown_first(tmp_path):
    page = render(grid_sweep(tmp_path / "run", tmp_path / "pets"))
    described = [value for value in page.values("alt") if value.startswith("A test image")]
    assert described[:3] == [
        "A test image of owl, predicted as cat",
        "A test image of dog, predicted as owl",
        "A test image of cat, predicted as dog",
    ]
    assert len(described) == 3 + 12
    assert "classifies 15 of 18 test items correctly: accuracy 0.833, macro-F1 0.833" in page.text
    header, *rows = tables(tmp_path / "run")["classes"]
    assert [row[header.index("recall")] for row in rows] == ["0.8333333333333334"] * 3


def test_predictions_show_no_file_outside_their_dataset(tmp_path):
    run_dir = grid_sweep(tmp_path / "run", tmp_path / "pets")
    write_images(tmp_path / "secret", ["x"], 1)
    path = next(run_dir.glob("predictions/*.json"))
    document = json.loads(path.read_text())
    document["paths"][0] = "../secret/test/x/0.png"
    document["paths"][1] = str(tmp_path / "secret" / "test" / "x" / "0.png")
    path.write_text(json.dumps(document))
    assert "of 16 test items correctly" in render(run_dir).text


def test_predictions_without_their_images_keep_figures(tmp_path):
    run_dir = grid_sweep(tmp_path / "run", tmp_path / "pets")
    path = next(run_dir.glob("predictions/*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"root": str(tmp_path / "gone")}))
    page = render(run_dir)
    assert "accuracy 0.833" in page.text
    assert "img" not in page.tags
    path.write_text("{")
    assert "Test predictions of the best model" not in render(run_dir).text
