"""What a device was measured to take is kept for later searches, and corrected by what they took."""

import json

import pytest
import torch

from raysnap.models.numerics import Numerics
from raysnap.search.engine.pace import Laps, Pace
from raysnap.search.known_pace import learn_corrections, learn_speeds, read_pace, write_pace
from raysnap.search.plan.costs import BlockSpeed
from raysnap.search.plan.forecast import DevicePace
from tests.support.search_stores import one_thread

KIND, OTHER = ("resnet18", 32, 1), ("resnet18", 32, 5)
SPEED = BlockSpeed(0.01, 0.002)


@pytest.fixture
def numerics(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with one_thread():
        yield Numerics.for_inference("float32", torch.device("cpu"))


def pace_with(**fields):
    return DevicePace("cpu", 1, **fields)


def test_a_pace_is_read_back_as_it_was_written(numerics):
    assert read_pace(numerics) == pace_with()
    pace = pace_with(speeds={KIND: SPEED}, corrections={"inference": 1.25})
    write_pace(numerics, pace)
    assert read_pace(numerics) == pace


def test_each_format_and_number_of_threads_has_its_own(numerics):
    write_pace(numerics, pace_with(corrections={"inference": 1.25}))
    halves = Numerics.for_inference("bfloat16", numerics.device)
    assert not read_pace(halves).corrections
    torch.set_num_threads(2)
    assert read_pace(numerics) == DevicePace("cpu", 2)


@pytest.mark.parametrize("content", ["", "[1]", '{"speeds": [["a"]], "corrections": {}}', '{"corrections": 3}'])
def test_a_damaged_file_is_as_good_as_none(numerics, tmp_path, content):
    write_pace(numerics, pace_with(corrections={"inference": 1.25}))
    (path,) = (tmp_path / "raysnap" / "pace").iterdir()
    path.write_text(content)
    assert read_pace(numerics) == pace_with()
    write_pace(numerics, pace_with(corrections={"inference": 2.0}))
    assert read_pace(numerics).corrections == {"inference": 2.0}


@pytest.mark.parametrize("foreign", [("timm/of_another_version", 224, 0), ("resnet18", 32, 99)])
def test_what_another_version_measured_is_left_out(numerics, foreign):
    write_pace(numerics, pace_with(speeds={KIND: SPEED, foreign: SPEED}))
    assert read_pace(numerics).speeds == {KIND: SPEED}


def test_what_hardly_changed_is_not_written(numerics, tmp_path):
    write_pace(numerics, pace_with(corrections={"inference": 1.0}))
    (path,) = (tmp_path / "raysnap" / "pace").iterdir()
    write_pace(numerics, pace_with(corrections={"inference": 1.05}))
    assert json.loads(path.read_text())["corrections"] == {"inference": 1.0}
    write_pace(numerics, pace_with(corrections={"inference": 1.2}))
    assert json.loads(path.read_text())["corrections"] == {"inference": 1.2}


def test_a_cache_that_can_not_be_written_is_no_error(numerics, tmp_path):
    (tmp_path / "raysnap").write_text("a file in the place of the folder")
    write_pace(numerics, pace_with(corrections={"inference": 1.0}))
    assert read_pace(numerics) == pace_with()


def test_laps_move_a_known_speed_half_of_the_way():
    laps = {KIND: Laps(num_batches=2, num_items=20, total_s=4 * (2 * 0.01 + 20 * 0.002))}
    learnt = learn_speeds(pace_with(speeds={KIND: SPEED}), laps).speeds[KIND]
    assert (learnt.call_s, learnt.item_s) == pytest.approx((0.02, 0.004)), "the root of a factor of 4"
    laps = {OTHER: Laps(num_batches=1, num_items=10, total_s=0.5)}
    learnt = learn_speeds(pace_with(speeds={KIND: SPEED}), laps).speeds
    assert learnt[KIND] == SPEED
    assert learnt[OTHER].call_s + 10 * learnt[OTHER].item_s == pytest.approx(0.5)


def test_corrections_are_of_what_usual_rates_say():
    usual_s = {"inference": 1.0, "linear": 2.0, "decode": 0.001, "load_blocks": 0.2}
    took_s = {"inference": 4.0, "linear": 1.0, "decode": 0.3, "load_blocks": 100.0}
    first = learn_corrections(pace_with(), usual_s, took_s).corrections
    expected = {"inference": 4.0, "linear": 0.5, "load_blocks": 8.0}
    assert first == pytest.approx(expected), "too short a time says nothing, and a factor has a bound"
    again = learn_corrections(pace_with(corrections={"inference": 1.0}), usual_s, took_s).corrections
    assert again["inference"] == pytest.approx(2.0), "half of the way"


def test_laps_are_summed_by_kind():
    pace = Pace(torch.device("cpu"), 1)
    for num_items in (4, 8):
        with pace.lap(KIND, num_items):
            sum(range(10_000))
    laps = pace.laps()[KIND]
    assert (laps.num_batches, laps.num_items) == (2, 12) and laps.total_s > 0
    assert pace.compute_bound_s() == pytest.approx(12 * laps.best_s_per_item)
