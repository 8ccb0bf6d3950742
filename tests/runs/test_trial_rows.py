"""A trial's row: what version 0.1 wrote is written again byte for byte, and anything else is read leniently."""

import json
from pathlib import Path

import pytest

from raysnap.config.choices import Role, Status
from raysnap.runs.trial_rows import TrialRow, latest_trial_rows, merit_order

WRITTEN = Path(__file__).with_name("trial_rows_0_1.jsonl").read_text("utf-8").splitlines()


@pytest.mark.parametrize("line", WRITTEN, ids=lambda line: json.loads(line)["trial"])
def test_a_row_of_version_0_1_is_written_again_byte_for_byte(line):
    row = TrialRow.read(json.loads(line))
    assert json.dumps(row.as_json()) == line


def test_the_rows_of_version_0_1_cover_every_role_and_ending():
    rows = [TrialRow.read(json.loads(line)) for line in WRITTEN]
    assert {row.role for row in rows} == set(Role)
    assert {row.status for row in rows} >= {Status.DONE, Status.STOPPED, Status.DIVERGED}
    assert {row.is_compared for row in rows} == {True, False}


def test_what_a_trial_took_of_its_gpu_is_read_again():
    used = {"gpu_share": 0.25, "gpu_peak_bytes": 20, "gpu_bytes": 100, "gpu_forecast_bytes": 30}
    row = TrialRow.read({"trial": "a"} | used)
    assert {name: row.as_json()[name] for name in used} == used


def test_a_row_without_its_fields_is_of_unknown_status():
    row = TrialRow.read({"trial": 7})
    assert (row.name, row.role, row.status, row.architecture) == ("7", Role.FINETUNE, Status.UNKNOWN, "unknown")
    assert row.has_failed
    assert not row.is_final


@pytest.mark.parametrize("value", ["text", 1.5, True, None, [1], {"a": "b"}, float("nan"), 10**400])
def test_a_field_of_another_kind_is_unknown_and_no_error(value):
    keys = json.loads(WRITTEN[0]).keys() - {"trial"}
    row = TrialRow.read({"trial": "a"} | dict.fromkeys(keys, value))
    assert row.name == "a"
    assert row.epochs == ()
    assert row.curve == ()


def test_foreign_roles_and_statuses_are_kept_as_text():
    row = TrialRow.read({"trial": "a", "role": "probe", "status": "lost"})
    assert (row.role, row.status) == ("probe", "lost")


def test_a_trials_last_row_counts_in_the_place_of_its_first():
    rows = [{"trial": "a", "status": "failed"}, {"method": "shift"}, {"trial": "b"}, {"trial": "a", "status": "done"}]
    assert [(row.name, row.status) for row in latest_trial_rows(rows)] == [("a", "done"), ("b", "unknown")]


@pytest.mark.parametrize(
    ("status", "stopped", "is_final"),
    [
        ("done", None, True),
        ("done", "patience", True),
        ("stopped", "scheduler", True),
        ("stopped", "time_budget", False),
        ("failed", None, False),
        ("oom", None, False),
        ("diverged", None, False),
    ],
)
def test_a_resumed_job_leaves_what_ended_well_in_time(status, stopped, is_final):
    assert TrialRow.read({"trial": "a", "status": status, "stopped": stopped}).is_final == is_final


def test_equal_objectives_are_told_apart_by_loss_then_name():
    trials = [("a", 0.9, {}), ("b", 1.0, {"val_loss": 0.3}), ("c", 1.0, {"val_loss": 0.2}), ("d", 1.0, {})]
    order = sorted(trials, key=lambda one: merit_order(one[1], one[2], one[0], is_max=True))
    assert [name for name, *_ in order] == ["c", "b", "d", "a"]
    order = sorted(trials, key=lambda one: merit_order(one[1], one[2], one[0], is_max=False))
    assert [name for name, *_ in order] == ["a", "c", "b", "d"]
