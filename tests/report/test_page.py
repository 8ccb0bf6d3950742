"""A report shows all that a run directory holds, loads nothing, and copes with whatever went wrong."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

from raysnap.errors import UsageError
from raysnap.humanize import shown
from raysnap.report.page import write_report
from tests.support.report_pages import Page, assert_harmless, render, some_trials
from tests.support.report_runs import (
    HOSTILE,
    METHODS,
    bench_row,
    grid_sweep,
    quickstart,
    ranking_of,
    search,
    trial,
    write_run,
)


def test_every_trial_of_the_results_is_a_row_of_the_table(tmp_path):
    trials = some_trials()
    page = render(quickstart(tmp_path / "run", trials))
    assert page.values("data-trial") == [row["trial"] for row in trials]
    assert all(row["trial"] in page.text for row in trials)


def test_failures_are_named_with_their_reason(tmp_path):
    trials = some_trials()
    run_dir = quickstart(tmp_path / "run", trials)
    broken = search("shift", 0, [], dataset="other") | {"status": "failed", "error": "out of memory", "search": None}
    skipping = search("alsatian", 9, ranking_of(trials))
    skipping["search"]["skipped"] = [{"snapshot": trials[3]["snapshot"], "error": "block damaged"}]
    with (run_dir / "bench" / "results.jsonl").open("a") as file:
        file.write(json.dumps(broken) + "\n" + json.dumps(skipping) + "\n")
    page = render(run_dir)
    assert "4 failures are listed below" in page.text
    for reason in ("it went wrong at 10", "it went wrong at 11", "out of memory", "block damaged"):
        assert reason in page.text
    assert f"{trials[3]['trial']} (alsatian)" in page.text


def test_hostile_names_are_text_and_never_tags(tmp_path):
    rows = [trial(n, dataset=HOSTILE, name=f"{HOSTILE}{n}", architecture=HOSTILE, role=HOSTILE) for n in range(3)]
    rows.append(trial(3, status=HOSTILE, name=f"{HOSTILE}3", error=HOSTILE, history=[]))
    run_dir = write_run(
        tmp_path / "run", rows, note=HOSTILE.replace("\x00", "").replace("\ud800", "").replace("\x1b", "")
    )
    write_run(run_dir / "bench", [search("shift", 0, ranking_of(rows), dataset=HOSTILE, proxy=HOSTILE)])
    (run_dir / "env.json").write_text(json.dumps({"cpu": HOSTILE, "started": HOSTILE, "stages_s": {HOSTILE: 3}}))
    page = render(run_dir)
    assert_harmless(page)
    assert shown(page.html) == page.html
    assert r"\u202e\x1b[2J" in page.text
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7 * 7 }}" in page.text


def test_the_page_refers_to_no_resource(tmp_path):
    page = render(quickstart(tmp_path / "run", some_trials()))
    assert not re.search(r"https?://|url\(|@import|src=", page.html)
    assert all(value.startswith(("#", "data:")) for value in page.values("href"))
    assert "default-src 'none'" in page.html


def test_the_pages_script_is_the_one_its_policy_allows(tmp_path):
    page = render(write_run(tmp_path / "run", some_trials()))
    script = re.search(r"<script>(.*)</script>", page.html, re.DOTALL)[1]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in page.html


def test_the_report_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    run_dir = write_run(tmp_path / "run", some_trials())
    target = write_report(run_dir)
    before = target.read_bytes()
    files = sorted(path.name for path in run_dir.iterdir())
    write_run(run_dir, [trial(99)])

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UsageError, match="No space left on device"):
        write_report(run_dir)
    assert target.read_bytes() == before
    assert sorted(path.name for path in run_dir.iterdir()) == files


def test_the_report_is_written_to_the_given_path(tmp_path):
    run_dir = write_run(tmp_path / "run", some_trials())
    out_path = tmp_path / "some" / "where.html"
    assert write_report(run_dir, out_path) == out_path
    assert out_path.read_text("utf-8").startswith("<!doctype html>")
    assert not (run_dir / "report.html").exists()
    with pytest.raises(UsageError, match="found a folder"):
        write_report(run_dir, tmp_path)


def test_a_report_replaces_reports_only(tmp_path):
    run_dir = quickstart(tmp_path / "run", some_trials())
    out = tmp_path / "mine.html"
    out.write_text("<h1>mine</h1>")
    with pytest.raises(UsageError, match="expected a report or no file, found another file"):
        write_report(run_dir, out)
    assert out.read_text() == "<h1>mine</h1>" and not (tmp_path / "mine_tables").exists()
    out.write_text("")
    for _ in range(2):
        assert write_report(run_dir, out) == out


def test_the_same_run_gives_the_same_page(tmp_path):
    run_dir = quickstart(tmp_path / "run", some_trials())
    first = write_report(run_dir).read_bytes()
    assert write_report(run_dir).read_bytes() == first


def test_a_run_without_finished_trials_has_a_report(tmp_path):
    page = render(write_run(tmp_path / "run", [trial(n, status="failed", history=[]) for n in range(4)]))
    assert "No trial of this run finished" in page.text
    assert "No fine-tune finished; the run took 60.0 s; 4 trials failed." in page.text
    assert "No trial finished an epoch" in page.text


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None, "0.5", [], True, 10**400])
def test_metrics_that_are_no_finite_numbers_are_unknown(tmp_path, bad):
    row = trial(1, metrics={"val_accuracy": bad}, history=[{"epoch": 1, "val_accuracy": bad}], new_bytes=bad)
    ranking = [one | {"score": bad} for one in ranking_of([row])]
    run_dir = write_run(tmp_path / "run", [row, trial(2, metrics=bad, history=bad, timings_s=bad)])
    write_run(run_dir / "bench", [search("shift", 0, ranking)])
    page = render(run_dir)
    assert not re.search(r"\b(nan|inf)\b", page.text, re.IGNORECASE)
    assert len(page.values("data-trial")) == 2


def test_a_page_of_150_trials_is_below_2_mb(tmp_path):
    trials = [trial(n, dataset=f"set-{n % 8}") for n in range(150)]
    page = render(quickstart(tmp_path / "run", trials))
    assert len(page.values("data-trial")) == 150
    assert "Show all 150" in page.text
    assert len(page.html) < 2_000_000


def test_a_bench_run_has_rankings_and_times_but_no_trials(tmp_path):
    ranking = ranking_of([trial(n) for n in range(4)])
    rows = [search(m, k, ranking, dataset=d) for m in METHODS for k in range(2) for d in ("set-a", "set-b")]
    page = render(write_run(tmp_path / "run", rows, kind="bench"))
    assert "4 search methods timed on 2 datasets" in page.text
    assert "All trials" not in page.text
    assert page.text.count("Ranked by method baseline") == 2


ATTACKS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "javascript:alert(1)",
    "</title><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</svg><iframe src=https://example.org>",
    "{{ 7*7 }}{% raw %}${7*7}",
    "<a href=//example.org onmouseover=alert(1)>x</a>",
    "]]><!--<base href=https://example.org>",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_name_or_value_becomes_markup(tmp_path, attack):
    data_dir = tmp_path / "pets"
    run_dir = grid_sweep(tmp_path / attack.replace("/", "∕"), data_dir)
    rows = [json.loads(line) for line in (run_dir / "results.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {"trial": f"{row['trial']} {attack}", "dataset": attack, "note": attack}
        row["point"] |= {attack: attack if row["trial"] < "004" else "other", "base": attack + row["point"]["base"]}
    rows += [bench_row(m, 0, ranking_of(rows), dataset=attack, store=attack, group=attack) for m in (attack, "shared")]
    write_run(run_dir, rows, kind="sweep", space={attack: {"grid": [attack]}})
    path = next(run_dir.glob("predictions/*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"classes": [attack, f"{attack}2", "owl"]}))
    page = render(run_dir)
    assert_harmless(page)
    assert "example.org" not in "".join(page.values("src") + page.values("href"))
    assert re.sub(r"\s+", " ", attack) in page.text


def test_the_output_of_search_makes_a_report(tmp_path):
    document = search("nested", 0, ranking_of(some_trials()))["search"] | {"proxy": "linear", "dataset": "pets"}
    (tmp_path / "found.json").write_text(json.dumps(document))
    (tmp_path / "other.json").write_text("[]")
    assert write_report(tmp_path / "found.json") == tmp_path / "found.html"
    assert "is among the 2 best starts for pets: they are tied" in Page(tmp_path / "found.html").text
    page = render(tmp_path)
    assert "is among the 2 best starts for pets: they are tied" in page.text
    assert "What sharing blocks saves" not in page.text  # nothing is known of the store


def test_files_that_were_not_read_are_listed(tmp_path):
    run_dir = write_run(tmp_path / "run", [trial(1)])
    left_out = [
        {"path": "train/a.txt", "reason": "no image (.txt)", "num_files": 1, "is_expected": True},
        {"path": "train/b.HEIC", "reason": "HEIC", "num_files": 1, "is_expected": False},
    ]
    account = {"dataset": "pets", "num_images": {"train": 9}, "left_out": left_out, "bad": ["x.jpg: torn"], "notes": []}
    env = json.loads((run_dir / "env.json").read_text())
    (run_dir / "env.json").write_text(json.dumps(env | {"data": [account]}))
    page = write_report(run_dir).read_text("utf-8")
    rows = (run_dir / "report_tables" / "left_out.csv").read_text("utf-8").splitlines()[1:]
    assert rows == ["pets,,1,x.jpg: torn", "pets,train/b.HEIC,1,HEIC", "pets,train/a.txt,1,no image (.txt)"]
    assert "Files that were not read" in page and "train/b.HEIC" in page
