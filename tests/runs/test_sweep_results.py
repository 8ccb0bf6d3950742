"""A sweep read back: its parameters, its best trial, and how values compare."""

import pytest

from raysnap.runs.run import read_run
from raysnap.runs.sweep_results import choice_text, point_text, sweep_of, training_s, value_text
from tests.support.report_runs import grid_sweep, random_sweep, sweep_trial, trial, write_run


def sweep_in(run_dir):
    return sweep_of(read_run(run_dir))


def test_a_run_without_a_search_space_is_no_sweep(tmp_path):
    assert sweep_in(write_run(tmp_path / "run", [trial(1)])) is None


def test_only_keys_with_several_values_are_parameters(tmp_path):
    rows = [sweep_trial(n, {"train.lr": lr, "train.epochs": 3}, 0.5) for n, lr in enumerate((0.1, 0.2))]
    (parameter,) = sweep_in(write_run(tmp_path / "run", rows, kind="sweep")).parameters
    assert (parameter.key, parameter.label, parameter.values) == ("train.lr", "lr", (0.1, 0.2))


def test_equal_last_parts_of_keys_are_told_apart_by_whole_keys(tmp_path):
    rows = [sweep_trial(n, {"train.lr": n, "head.lr": n}, 0.5) for n in range(2)]
    sweep = sweep_in(write_run(tmp_path / "run", rows, kind="sweep"))
    assert [parameter.label for parameter in sweep.parameters] == ["train.lr", "head.lr"]


@pytest.mark.parametrize(("values", "is_log"), [((1e-4, 1e-1), True), ((1.0, 2.0), False), ((0.0, 100.0), False)])
def test_values_over_a_wide_range_are_on_a_log_scale(tmp_path, values, is_log):
    rows = [sweep_trial(n, {"train.lr": value}, 0.5) for n, value in enumerate(values)]
    (parameter,) = sweep_in(write_run(tmp_path / "run", rows, kind="sweep")).parameters
    assert parameter.is_log == is_log


def test_a_stopped_trial_is_never_the_best(tmp_path):
    rows = [sweep_trial(1, {"a": 1}, 0.5), sweep_trial(2, {"a": 2}, 0.9, status="stopped", stopped="scheduler")]
    sweep = sweep_in(write_run(tmp_path / "run", rows, kind="sweep"))
    assert sweep.best.name == "001-sweep"
    assert [ranked.name for ranked in sweep.ranked] == ["001-sweep", "002-sweep"]


def test_each_value_is_compared_on_otherwise_equal_trials(tmp_path):
    by_key = {one.parameter.key: one for one in sweep_in(grid_sweep(tmp_path / "run")).comparisons}
    base = by_key["base"]
    assert (base.better, base.worse, base.num_pairs, base.num_better) == ("pretrained", "not pretrained", 4, 4)
    assert (base.least_gain, base.gain, base.most_gain) == pytest.approx((0.25, 0.25, 0.25))


def test_without_pairs_medians_are_compared(tmp_path):
    comparisons = sweep_in(random_sweep(tmp_path / "run")).comparisons
    assert comparisons
    assert {comparison.num_pairs for comparison in comparisons} == {0}
    assert all(comparison.gain >= 0 for comparison in comparisons)


def test_a_trials_values_are_listed_in_the_order_of_the_space(tmp_path):
    sweep = sweep_in(grid_sweep(tmp_path / "run"))
    assert point_text(sweep.best, sweep.parameters) == "base = pretrained, retrain = last blocks, optimizer = adam"
    assert choice_text(sweep.best, sweep.parameters) == "pretrained, last blocks, adam"


def test_training_time_is_training_evaluation_and_prefixes(tmp_path):
    (timed, untimed) = read_run(
        write_run(tmp_path / "run", [sweep_trial(1, {}, 0.5), trial(2, timings_s={"total": 3.0})])
    ).trials
    assert training_s(timed) == 10.0 + 1 + 1.0 + 2.0
    assert training_s(untimed) is None


@pytest.mark.parametrize(
    ("value", "shown"), [(True, "true"), (None, "null"), (0.00012346, "0.0001235"), ("a", "a"), ([1], "[1]"), (3, "3")]
)
def test_a_value_is_written_as_in_yaml(value, shown):
    assert value_text(value) == shown
