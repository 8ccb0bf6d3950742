"""What a search decides before it runs, what it says of that, and how it keeps to a time budget."""

import json

import pytest

from raysnap.errors import UsageError
from raysnap.search import known_pace, search
from raysnap.search import outlook as outlook_module
from raysnap.search.outlook import Outlook
from raysnap.search.plan.forecast import STAGES
from tests.support.searches import DATA, SHAPES, VARIANTS, lines

pytestmark = [pytest.mark.usefixtures("single_thread"), pytest.mark.xdist_group("searches")]


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Give a test a user's cache folder of its own, where nothing was measured."""
    monkeypatch.setattr(known_pace, "user_cache_dir", lambda: tmp_path)
    return tmp_path


def run(store, data_dir, **options):
    return search(store, DATA, data_dir=data_dir, shapes=SHAPES, **options)


def fix_pace(monkeypatch, method):
    """Let `auto` take this method, as a device would on which it is fastest."""
    rungs_cost = {"shared": 1e3, "nested": 1e-9}[method]
    real = outlook_module.read_pace

    def read(numerics):
        pace = real(numerics)
        corrections = {"inference": 1e3 / rungs_cost, "linear": rungs_cost}
        return type(pace)(pace.device, pace.num_streams, pace.speeds, corrections)

    monkeypatch.setattr(outlook_module, "read_pace", read)
    monkeypatch.setattr(outlook_module, "write_pace", lambda numerics, pace: None)


def test_auto_is_the_method_that_it_takes(find, resnets, data_dir, monkeypatch):
    fix_pace(monkeypatch, "shared")
    result = run(resnets, data_dir)
    assert result.method == "shared" and result.forecast.asked == "auto"
    assert lines(result) == lines(find(resnets, method="shared"))


def test_a_result_says_what_was_forecast_and_what_came(find, resnets):
    result = find(resnets, method="shared")
    forecast = result.forecast
    assert (forecast.asked, forecast.reason) == ("shared", "it was asked for")
    assert [one.method for one in forecast.methods] == ["shared", "nested"]
    came = forecast.came
    assert came.method == "shared" and [one.num_candidates for one in came.rungs] == [len(VARIANTS)]
    assert came.image_forwards == pytest.approx(forecast.methods[0].image_forwards)
    for one in (*forecast.methods, came):
        assert one.timings_s.keys() == {"start", *STAGES, "total"}
        assert one.timings_s["total"] == pytest.approx(sum(one.timings_s[key] for key in ("start", *STAGES)))
    assert came.timings_s["total"] == result.timings_s["total"]
    assert json.loads(json.dumps(result.to_dict()))["forecast"]["came"]["method"] == "shared"


def test_only_a_decision_measures_and_what_was_measured_is_kept(resnets, data_dir, monkeypatch, own_cache):
    measured = []
    real = outlook_module.measure_kinds
    monkeypatch.setattr(
        outlook_module, "measure_kinds", lambda kinds, *rest: measured.append(kinds) or real(kinds, *rest)
    )
    run(resnets, data_dir, method="shared", where="name == 'one' or name == 'two'")
    assert not measured, "a method that is asked for is taken"
    (path,) = (own_cache / "pace").iterdir()
    assert len(json.loads(path.read_text())["speeds"]) == 9, "every kind of block that ran"
    path.unlink()
    run(resnets, data_dir, where="name == 'one' or name == 'two'")
    assert len(measured) == 1 and len(measured[0]) == 9
    run(resnets, data_dir, where="name == 'one' or name == 'two'")
    assert len(measured) == 1, "the pace is known"


def test_features_in_the_cache_are_forecast_to_take_nothing(resnets, data_dir):
    first, again = (run(resnets, data_dir, method="shared", num_train=40, feature_cache_bytes=10**8) for _ in range(2))
    assert first.forecast.methods[0].image_forwards > 0 == again.forecast.methods[0].image_forwards
    assert again.forecast.came.image_forwards == 0


def test_a_small_budget_asks_a_smaller_question(find, resnets, data_dir):
    result = run(resnets, data_dir, method="shared", time_budget_s=1e-3)
    line = result.ranking[0]
    assert (line.num_train, line.num_test) == (16, 8), "the fewest items"
    assert "more than the 1\u00a0ms left of the time budget" in result.forecast.reason
    same = find(resnets, method="shared", num_train=line.num_train, num_test=line.num_test)
    assert lines(result) == lines(same)


def test_a_large_budget_changes_nothing(find, resnets, data_dir):
    assert lines(run(resnets, data_dir, method="alsatian", time_budget_s=1e6)) == lines(
        find(resnets, method="alsatian")
    )


def test_no_rung_begins_that_would_exceed_the_budget(find, resnets, data_dir, monkeypatch):
    full = find(resnets, method="alsatian")
    monkeypatch.setattr(Outlook, "has_time", lambda self, rungs, reports, *rest: len(reports) < 2)
    result = run(resnets, data_dir, method="alsatian", time_budget_s=1e6)
    assert result.rungs[0].num_train == full.rungs[0].num_train and len(result.rungs) == 2 < len(full.rungs)
    assert len(result.ranking) == len(full.ranking) and result.ranking[0].num_train == full.rungs[1].num_train


@pytest.mark.parametrize("budget_s", [0, -1.0, float("nan"), 1e9])
def test_a_budget_is_a_positive_number_of_seconds(resnets, data_dir, budget_s):
    with pytest.raises(UsageError, match="time_budget_s: expected"):
        run(resnets, data_dir, time_budget_s=budget_s)
