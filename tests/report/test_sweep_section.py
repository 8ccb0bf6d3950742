"""A sweep in a report: which trial is best, and how the values of each parameter compare."""

import pytest

from tests.support.report_pages import render, tables
from tests.support.report_runs import (
    grid_sweep,
    random_sweep,
    sweep_trial,
    write_run,
)


def test_a_grid_is_compared_on_otherwise_identical_trials(tmp_path):
    run_dir = grid_sweep(tmp_path / "run", tmp_path / "pets")
    page = render(run_dir)
    assert "Best of 8 trials: base = pretrained, retrain = last blocks, optimizer = adam" in page.text
    assert (
        "base: pretrained beats not pretrained in 4 of 4 pairs of otherwise identical trials, by 0.250 val accuracy"
        in page.text
    )
    assert "optimizer: adam beats sgd in 4 of 4 pairs" in page.text
    assert "8 of 8 trials overfit" in page.text
    header, *rows = tables(run_dir)["training_times"]
    totals = [float(row[header.index("training_s")]) for row in rows]
    assert float(rows[-1][header.index("cumulative_s")]) == pytest.approx(sum(totals)) == pytest.approx(132)


def test_a_pair_with_the_opposite_result_is_counted(tmp_path):
    points = [("a", "x", 0.9), ("a", "y", 0.5), ("b", "x", 0.6), ("b", "y", 0.6)]
    rows = [sweep_trial(n, {"one": one, "two": two}, accuracy) for n, (one, two, accuracy) in enumerate(points)]
    page = render(write_run(tmp_path / "run", rows, kind="sweep"))
    assert (
        "one: a beats b in 1 of 2 pairs of otherwise identical trials, by 0.100 val accuracy on average (-0.100 to"
        in page.text
    )
    assert "two: x beats y in 1 of 2 pairs" in page.text


def test_a_conditional_parameter_splits_no_pair(tmp_path):
    rows = []
    for n, (base, optimizer, accuracy) in enumerate(
        [("x", "adam", 0.8), ("x", "sgd", 0.7), ("y", "adam", 0.6), ("y", "sgd", 0.5)]
    ):
        point = {"base": base, "train.optimizer": optimizer}
        rows.append(sweep_trial(n, point | ({"train.momentum": 0.9} if optimizer == "sgd" else {}), accuracy))
    space = {"train.optimizer": {"grid": ["adam", "sgd"]}}
    space["train.momentum"] = [{"grid": [0.9], "when": {"train.optimizer": "sgd"}}]
    text = render(write_run(tmp_path / "run", rows, kind="sweep", space=space)).text
    assert "optimizer: adam beats sgd in 2 of 2 pairs of otherwise identical trials, by 0.100" in text


def test_a_random_search_is_compared_without_pairs(tmp_path):
    run_dir = random_sweep(tmp_path / "run")
    page = render(run_dir)
    assert "beats" not in page.text
    assert "but these trials also differ in other ways" in page.text
    assert "15 trials stopped before the last epoch, by the scheduler" in page.text
    assert "1 failure is listed below" in page.text
    assert page.values("class").count("mark trace best") == 1
    assert sum(value.startswith("mark trace") for value in page.values("class")) == 30
    assert tables(run_dir)["sweep_trials"][1][0] == "1"


def test_a_metric_to_be_minimised_ranks_the_smallest_first(tmp_path):
    rows = [sweep_trial(n, {"train.lr": lr}, 0.5, objective=lr * 10) for n, lr in enumerate((0.3, 0.1, 0.2))]
    text = render(write_run(tmp_path / "run", rows, kind="sweep", metric="val_loss", mode="min")).text
    assert "Best of 3 trials: lr = 0.1" in text
    assert "lr: 0.1 beats 0.2 by 1.000 val loss in the only pair of otherwise identical trials" in text


@pytest.mark.parametrize(("top5", "is_shown"), [(1.0, False), (0.99, True)])
def test_top_5_accuracy_is_shown_where_it_tells_something(tmp_path, top5, is_shown):
    rows = [sweep_trial(number, {"one": number}, 0.9) for number in range(2)]
    for row in rows:
        row["metrics"]["test_top5_accuracy"] = top5
    assert ("test top-5" in render(write_run(tmp_path / "run", rows, kind="sweep")).text) == is_shown


def test_datasets_are_named_without_their_folders(tmp_path):
    rows = [sweep_trial(number, {"dataset": f"/data/{name}"}, 0.9) for number, name in enumerate(("cats", "dogs"))]
    page = render(write_run(tmp_path / "run", rows, kind="sweep"))
    assert "dataset = cats" in page.text and "/data/cats" not in page.text.split("All trials")[0]
    rows = [sweep_trial(number, {"dataset": f"/{name}/pets"}, 0.9) for number, name in enumerate(("a", "b"))]
    assert "/a/pets" in render(write_run(tmp_path / "other", rows, kind="sweep")).text, "their names alone are equal"
