"""How trials were trained, in a report."""

from raysnap.report.training_section import training_section
from raysnap.runs.run import read_run
from raysnap.runs.store_contents import StoreContents
from tests.support.report_runs import trial, write_run

NO_STORE = StoreContents(None)


def section(run_dir, rows):
    return training_section(read_run(write_run(run_dir, rows)), NO_STORE)


def test_there_is_a_panel_per_dataset_with_bases_first(tmp_path):
    rows = [trial(1, dataset="b"), trial(2, dataset="a"), trial(3, dataset="c", role="base")]
    panels = section(tmp_path / "run", rows)["panels"]
    assert [panel.split("aria-label=")[1].split(":")[0] for panel in panels] == ['"c (base)', '"a', '"b']


def test_a_panel_of_many_trials_is_thinned(tmp_path):
    found = section(tmp_path / "run", [trial(n) for n in range(70)])
    assert found["is_thinned"] is True
    assert found["panels"][0].count('class="series') == found["max_lines"] == 60


def test_only_finished_trials_are_drawn_over_the_retrain_index(tmp_path):
    (chart,) = section(tmp_path / "run", [trial(1), trial(2), trial(3, status="failed")])["retrain"]
    assert chart.count('class="mark"') == 2


def test_wall_time_that_no_stage_explains_is_the_rest(tmp_path):
    assert "rest: 46.0" in section(tmp_path / "run", [trial(1)])["stages"]
