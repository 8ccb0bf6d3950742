"""The report of a finetune: the model first, then what was predicted of each start beside what came."""

import json

from raysnap.report.finetune_section import finetune_section
from raysnap.report.page import render
from raysnap.runs.run import read_run
from raysnap.runs.shortlist import SEARCH_NAME, TRAINING_DIR, Shortlist, ShortlistedStart, TimePlan
from tests.support.report_runs import ranking_of, search, trial, write_run


def write_finetune(run_dir, *, searched: bool = True, status: str = "done"):
    """Write the run of a finetune from three starts, each fine-tuned once; the second one wins."""
    starts, rows = [], []
    for number, (score, accuracy) in enumerate(((0.8, 0.6), (0.7, 0.9), (0.6, 0.5)), start=1):
        said = {"rank": number, "score": score, "low": score - 0.1, "high": score + 0.1, "num_scored": 40}
        facts = said | {"num_train": 30, "num_test": 10} if searched else {}
        facts |= {"is_base": number == 3}
        starts.append(ShortlistedStart(f"{number:064x}", f"start-{number}", "resnet18", 32, **facts))
        metrics = {"val_accuracy": accuracy, "test_accuracy": accuracy}
        point = {"base.weights": f"start-{number}", "retrain": "all"}
        facts = {"point": point, "objective": accuracy, "metrics": metrics, "predictions": None}
        rows.append(trial(number, status=status, name=f"00{number}-all-start-{number}", **facts))
    run_dir.mkdir()
    write_run(run_dir / TRAINING_DIR, rows, kind="sweep", metric="val_accuracy", mode="max")
    (run_dir / "config.yaml").write_text(json.dumps({"kind": "finetune", "dataset": "data/my-photos"}))
    facts = ("shared", "linear", 9, 0.02, 0.0, TimePlan(180, 45, 9, 10, 160, 120)) if searched else ()
    Shortlist(tuple(starts), 3, *facts).write(run_dir)
    if searched:
        (run_dir / SEARCH_NAME).write_text(json.dumps(search("shared", 0, ranking_of(rows))["search"]))
    return run_dir


def test_the_model_is_the_headline(tmp_path):
    page = render(read_run(write_finetune(tmp_path / "run"))).page
    assert '90.0\u00a0% of the test images of <span class="name">my-photos</span> are right' in page
    assert "<b class='name'>start-2</b> (retrain all): val accuracy <b>0.900</b>, test accuracy 0.900" in page
    assert "came to a test accuracy 0.300 below that of the best by validation; by the scores alone, " in page


def test_the_kept_model_is_compared_with_a_base(tmp_path):
    page = render(read_run(write_finetune(tmp_path / "run"))).page
    assert "a fine-tune of the base start-3 came to 0.500: 0.400 below the kept model" in page


def test_its_search_is_no_race_of_methods(tmp_path):
    page = render(read_run(write_finetune(tmp_path / "run"))).page
    assert "shared takes" not in page and "fastest search method" not in page


def test_intervals_stay_in_one_line(tmp_path):
    page = render(read_run(write_finetune(tmp_path / "run"))).page
    assert '<td class="keep">0.700 to 0.900</td>' in page


def test_predictions_stand_beside_what_came(tmp_path):
    section = finetune_section(read_run(write_finetune(tmp_path / "run")))
    rows = [row.values for row in section["table"].rows]
    assert [(row["rank"], row["score"], row["interval"], row["test_accuracy"]) for row in rows] == [
        (1, 0.8, "0.700 to 0.900", 0.6),
        (2, 0.7, "0.600 to 0.800", 0.9),
        (3, 0.6, "0.500 to 0.700", 0.5),
    ]
    assert section["chart"] and "3\u00a0min" in section["time"] and "store export" in section["next_lines"]


def test_named_starts_have_no_prediction(tmp_path):
    report = render(read_run(write_finetune(tmp_path / "run", searched=False)))
    assert "no search predicted anything" in report.page and "expected to lose" not in report.page


def test_a_run_without_a_finished_fine_tune_says_so(tmp_path):
    page = render(read_run(write_finetune(tmp_path / "run", status="stopped"))).page
    assert "no fine-tune was trained to its end" in page


def test_other_runs_have_no_such_section(tmp_path):
    assert finetune_section(read_run(write_run(tmp_path / "run", [trial(1)]))) is None
