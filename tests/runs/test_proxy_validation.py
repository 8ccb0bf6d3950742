"""A proxy's scores compared with fine-tuned accuracy."""

import pytest

from raysnap.runs.proxy_validation import validate_proxy
from raysnap.runs.run import read_run
from raysnap.runs.store_contents import StoreContents
from tests.support.report_runs import ranking_of, search, trial, write_run


def validate(run_dir, accuracies: list[float]):
    """Compare the scores of as many candidates, best first, with these accuracies."""
    starts = [trial(n, dataset="set-a") for n in range(4)]
    tuned = [
        trial(10 + n, dataset="target", base=start["snapshot"], metrics={"val_accuracy": accuracy})
        for n, (start, accuracy) in enumerate(zip(starts, accuracies, strict=False))
    ]
    write_run(run_dir, [*starts, *tuned])
    write_run(run_dir / "bench", [search("shared", 0, ranking_of(starts), dataset="target")])
    run = read_run(run_dir)
    return validate_proxy(run.questions[0], run, StoreContents(None))


def test_the_same_order_has_tau_1_and_no_regret(tmp_path):
    found = validate(tmp_path / "run", [0.9, 0.8, 0.7, 0.6])
    assert (found.tau, found.regret, found.metric) == (pytest.approx(1.0), 0.0, "val accuracy")


def test_a_wrong_winner_costs_regret(tmp_path):
    found = validate(tmp_path / "run", [0.7, 0.9, 0.6])
    assert found.regret == pytest.approx(0.2)
    assert found.tau == pytest.approx(1 / 3)


def test_equal_accuracies_have_no_tau(tmp_path):
    found = validate(tmp_path / "run", [0.7, 0.7, 0.7])
    assert (found.tau, found.p_value) == (None, None)


def test_fewer_than_three_known_candidates_say_nothing(tmp_path):
    assert validate(tmp_path / "run", [0.7, 0.9]) is None
