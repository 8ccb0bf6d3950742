"""A report shows all that a run directory holds, loads nothing, and stands whatever went wrong."""

import base64
import csv
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from raysnap.errors import DataError, UsageError
from raysnap.report.page import write_report
from raysnap.store.store import Store
from tests.support.report_runs import (
    HOSTILE,
    METHODS,
    bench_row,
    bench_run,
    grid_sweep,
    put_tree,
    quickstart,
    random_sweep,
    ranking_of,
    search,
    sweep_trial,
    trial,
    write_images,
    write_run,
)


class Page(HTMLParser):
    """The tags, attributes and text of a page, as a browser would see them."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.html = path.read_text("utf-8")
        self.feed(self.html)
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_data(self, data):
        self.words.append(data)

    def values(self, key: str) -> list[str]:
        return [value for _, name, value in self.attributes if name == key]


def render(run_dir: Path) -> Page:
    page = Page(write_report(run_dir))
    for svg in re.findall(r"<svg.*?</svg>", page.html, re.DOTALL):
        ElementTree.fromstring(svg)
    return page


def assert_harmless(page: Page) -> None:
    """Nothing but the page's own script runs, and nothing is loaded or sent."""
    assert page.tags.count("script") == 1
    assert not any(key.startswith("on") for _, key, _ in page.attributes)
    assert not {"iframe", "object", "embed", "base", "form", "foreignobject", "use", "animate"} & set(page.tags)
    assert all(value.startswith("data:image/jpeg;base64,") for value in page.values("src"))
    assert all(value.startswith(("#", "data:")) for value in page.values("href"))


def some_trials() -> list[dict]:
    sets = ["shapes-shape-a", "shapes-colour-a", "shapes-texture-a"]
    rows = [trial(n, dataset=sets[n % 3]) for n in range(10)]
    return [*rows, trial(10, status="failed"), trial(11, status="diverged")]


def test_every_trial_of_the_results_is_a_row_of_the_table(tmp_path):
    trials = some_trials()
    page = render(quickstart(tmp_path / "run", trials))
    assert page.values("data-trial") == [row["trial"] for row in trials]
    assert all(row["trial"] in page.text for row in trials)


def test_the_summary_says_what_was_trained_what_won_how_fast_and_what_was_saved(tmp_path):
    page = render(quickstart(tmp_path / "run", some_trials()))
    assert "10 snapshots of resnet18 were fine-tuned on 3 datasets; the run took 60.0 s" in page.text
    assert "1 trial failed and 1 trial diverged" in page.text
    assert "best of 10 candidates is 000-resnet18-shapes-shape-a-r0, fine-tuned on shapes-shape-a" in page.text
    assert "linear score 0.890 on 20 held-out items; 1 other is tied with it" in page.text
    assert "alsatian, takes 2.02 s (median of 3 runs), 4.0× faster than baseline (8.08 s)" in page.text
    assert "added 10.0 kB to the store; whole copies would have taken 40.0 kB" in page.text


def test_the_summary_says_how_much_of_the_trials_time_was_training(tmp_path):
    timed = [trial(1, wall_s=4.0, overhead_s=0.5), trial(2, wall_s=6.0, overhead_s=1.5)]
    untimed = [trial(3, wall_s=None, overhead_s=None), trial(4)]
    text = render(write_run(tmp_path / "run", [*timed, *untimed])).text
    assert "Training was 80 % of the fine-tunes' wall time; each had 1.00 s of overhead." in text
    assert "wall time; each had" not in render(write_run(tmp_path / "untimed", untimed)).text


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
    run_dir = write_run(tmp_path / "run", rows, note=HOSTILE.replace("\x00", "").replace("\ud800", ""))
    write_run(run_dir / "bench", [search("shift", 0, ranking_of(rows), dataset=HOSTILE, proxy=HOSTILE)])
    (run_dir / "env.json").write_text(json.dumps({"cpu": HOSTILE, "started": HOSTILE, "stages_s": {HOSTILE: 3}}))
    page = render(run_dir)
    assert_harmless(page)
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


def test_the_report_comes_into_being_whole_or_not_at_all(tmp_path, monkeypatch):
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


def test_the_report_goes_where_it_is_told(tmp_path):
    run_dir = write_run(tmp_path / "run", some_trials())
    out_path = tmp_path / "some" / "where.html"
    assert write_report(run_dir, out_path) == out_path
    assert out_path.read_text("utf-8").startswith("<!doctype html>")
    assert not (run_dir / "report.html").exists()
    with pytest.raises(UsageError, match="found a folder"):
        write_report(run_dir, tmp_path)


def test_the_same_run_gives_the_same_page(tmp_path):
    run_dir = quickstart(tmp_path / "run", some_trials())
    first = write_report(run_dir).read_bytes()
    assert write_report(run_dir).read_bytes() == first


@pytest.mark.parametrize(
    ("prepare", "error", "message"),
    [
        (lambda run: None, UsageError, "expected a run directory, found nothing there"),
        (lambda run: run.write_text(""), UsageError, "found a file"),
        (lambda run: run.mkdir(), DataError, "expected a run directory with results.jsonl in it"),
        (lambda run: write_run(run, []), DataError, "expected a row per trial or search, found none"),
        (lambda run: write_run(run, [[], 3, {"neither": 1}]), DataError, "found none"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line_and_nothing_is_written(tmp_path, prepare, error, message):
    prepare(tmp_path / "run")
    with pytest.raises(error, match=message) as caught:
        write_report(tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.html"))


def test_a_row_that_a_crash_tore_is_left_out_with_a_remark(tmp_path):
    run_dir = write_run(tmp_path / "run", some_trials())
    with (run_dir / "results.jsonl").open("a") as file:
        file.write('{"trial": "torn-')
    page = render(run_dir)
    assert "1 line of results.jsonl can't be read and was left out, perhaps cut off by a crash." in page.text
    assert len(page.values("data-trial")) == len(some_trials())


def test_a_trial_that_was_run_again_counts_once_with_its_last_row(tmp_path):
    page = render(write_run(tmp_path / "run", [trial(1, status="failed"), trial(2), trial(1)]))
    assert len(page.values("data-trial")) == 2
    assert "Failures" not in page.text


def test_trials_that_were_planned_but_not_run_are_counted(tmp_path):
    run_dir = write_run(tmp_path / "run", [trial(0)])
    (run_dir / "trials.jsonl").write_text("".join(json.dumps({"id": trial(n)["trial"]}) + "\n" for n in range(5)))
    page = render(run_dir)
    assert "4 planned trials have not finished" in page.text
    assert "of 5 fine-tunes done" in page.text


def test_a_base_that_is_only_drawn_is_no_trial_that_is_missing(tmp_path):
    run_dir = write_run(tmp_path / "run", [trial(0)])
    planned = [{"id": "base", "role": "base", "dataset": None}, {"id": trial(0)["trial"], "role": "finetune"}]
    (run_dir / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in planned))
    assert "of 1 fine-tune done" in render(run_dir).text


def test_a_run_of_which_nothing_finished_still_has_a_report(tmp_path):
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


def test_one_candidate_and_one_method_make_a_report(tmp_path):
    trials = [trial(4)]
    run_dir = write_run(tmp_path / "run", trials)
    write_run(run_dir / "bench", [search("shared", 0, ranking_of(trials))])
    page = render(run_dir)
    assert "Start from shapes-shape-a for shapes-shape-b" in page.text
    assert "shared takes 3.00 s (one run)" in page.text


def test_a_hundred_and_fifty_trials_make_a_page_of_bearable_length(tmp_path):
    trials = [trial(n, dataset=f"set-{n % 8}") for n in range(150)]
    page = render(quickstart(tmp_path / "run", trials))
    assert len(page.values("data-trial")) == 150
    assert "Show all 150" in page.text
    assert len(page.html) < 2_000_000


def test_a_bare_bench_run_has_rankings_and_times_but_no_trials(tmp_path):
    ranking = ranking_of([trial(n) for n in range(4)])
    rows = [search(m, k, ranking, dataset=d) for m in METHODS for k in range(2) for d in ("set-a", "set-b")]
    page = render(write_run(tmp_path / "run", rows, kind="bench"))
    assert "4 search methods timed on 2 datasets" in page.text
    assert "All trials" not in page.text
    assert page.text.count("Ranked by method baseline") == 2


def test_the_laws_of_the_methods_are_checked_on_the_run(tmp_path):
    trials = some_trials()
    ranking, other = ranking_of(trials), ranking_of(trials[::-1])
    rows = [search("baseline", 0, ranking), search("shared", 0, ranking), search("shift", 0, ranking)]
    run_dir = write_run(tmp_path / "run", trials)
    write_run(run_dir / "bench", [*rows, search("alsatian", 0, other)])
    page = render(run_dir)
    assert "As expected, shared gives every candidate the same score as baseline." in page.text
    assert "As expected, shared gives the same ranking as baseline." in page.text
    assert "Unexpectedly, alsatian ranks candidates differently from shift." in page.text
    assert "but its winner scores 0.090 lower" in page.text


def test_times_that_vary_are_flagged(tmp_path):
    ranking = ranking_of(some_trials())
    rows = [search("baseline", k, ranking, total_s=s) for k, s in enumerate((5.0, 8.0, 12.0))]
    rows += [search("alsatian", k, ranking, total_s=s) for k, s in enumerate((2.0, 2.01, 2.02))]
    page = render(write_run(tmp_path / "run", rows))
    assert page.text.count("noisy") == 1
    assert "baseline: the middle half of its runs spans 44 % of the median" in page.text


def put_family(store: Store, num_finetunes: int) -> list[str]:
    stem, body = {"conv1.weight": torch.zeros(64, 49)}, {"layer1.weight": torch.ones(100, 100)}
    ids = []
    for n in range(num_finetunes):
        blocks = [("stem", stem), ("layer1.0", body), ("head", {"fc.weight": torch.full((4, 8), float(n))})]
        written = store.put_snapshot(
            architecture="resnet18", blocks=[(name, store.put_block(part)) for name, part in blocks], num_classes=4
        )
        ids.append(written.manifest.id)
    return ids


def test_the_store_shows_what_sharing_saved_and_who_shares_which_block(tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    trials = [trial(n, snapshot=one) for n, one in enumerate(put_family(store, 6))]
    page = render(write_run(tmp_path / "run", trials, store=str(tmp_path / "store")))
    assert "resnet18: 6 snapshots, 8 blocks stored instead of 18" in page.text
    assert "The store holds 6 snapshots" in page.text
    assert sum(value.startswith("mark own") for value in page.values("class")) == 6
    assert sum(value.startswith("mark shared") for value in page.values("class")) == 2
    assert "guessing" in page.text


def test_a_store_that_moved_with_the_run_is_found(tmp_path):
    ids = put_family(Store.open(tmp_path / "moved" / "store", create=True), 2)
    trials = [trial(n, snapshot=one) for n, one in enumerate(ids)]
    page = render(write_run(tmp_path / "moved" / "run", trials, store="was/elsewhere/store"))
    assert "2 snapshots, 4 blocks stored instead of 6" in page.text


def test_a_damaged_store_leaves_a_report_that_says_so(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "store.json").write_text("{}")
    page = render(write_run(tmp_path / "run", some_trials(), store=str(tmp_path / "store")))
    assert "can't be read" in page.text
    assert "According to its records, the run added 10.0 kB" in page.text


def test_a_missing_store_is_said_and_the_runs_own_records_stand_in(tmp_path):
    page = render(write_run(tmp_path / "run", some_trials()))
    assert "There is no store at no-such-store" in page.text
    assert "the run added 10.0 kB to the store; whole copies would have taken 40.0 kB" in page.text


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
def test_no_name_of_a_class_snapshot_run_or_value_becomes_markup(tmp_path, attack):
    data_dir = tmp_path / "pets"
    run_dir = grid_sweep(tmp_path / attack.replace("/", "∕"), data_dir)
    rows = [json.loads(line) for line in (run_dir / "results.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {"trial": f"{row['trial']} {attack}", "dataset": attack, "note": attack}
        row["point"] |= {attack: attack if row["trial"] < "004" else "other", "base": attack + row["point"]["base"]}
    rows += [bench_row(m, 0, ranking_of(rows), dataset=attack, store=attack, group=attack) for m in (attack, "shared")]
    write_run(run_dir, rows, kind="sweep", space={attack: {"grid": [attack]}})
    told = next(run_dir.glob("predictions/*.json"))
    told.write_text(json.dumps(json.loads(told.read_text()) | {"classes": [attack, f"{attack}2", "owl"]}))
    page = render(run_dir)
    assert_harmless(page)
    assert "example.org" not in "".join(page.values("src") + page.values("href"))
    assert re.sub(r"\s+", " ", attack) in page.text


def tables(run_dir: Path) -> dict[str, list[list[str]]]:
    found = {
        path.stem: list(csv.reader(io.StringIO(path.read_text("utf-8")))) for path in run_dir.glob("*_tables/*.csv")
    }
    assert found.keys() == {path.stem for path in run_dir.glob("*_tables/*.md")}
    return found


def test_every_table_of_the_page_is_written_as_csv_and_markdown(tmp_path):
    run_dir = bench_run(tmp_path / "run")
    page, written = render(run_dir), tables(run_dir)
    shown = {value.removeprefix("table-") for tag, key, value in page.attributes if (tag, key) == ("table", "id")}
    assert shown == written.keys()
    header, *rows = written["timings_01"]
    assert dict(zip(header, rows[0], strict=True))["median_s"] == "8.08"
    lines = (run_dir / "report_tables" / "timings_01.md").read_text("utf-8").splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert len([line for line in lines if line.startswith("|")]) == 2 + len(rows)


def test_tables_go_beside_a_page_that_goes_elsewhere(tmp_path):
    run_dir = write_run(tmp_path / "run", some_trials())
    write_report(run_dir, tmp_path / "shown" / "first.html")
    assert not (run_dir / "report_tables").exists()
    assert (tmp_path / "shown" / "first_tables" / "trials.csv").is_file()


@pytest.mark.parametrize(
    "name", ["=HYPERLINK(1)", "+1", "-1", "@x", "a|b", "`c`", "<b>d</b>", "[e](f)", "g\nh", 'i"j,k']
)
def test_hostile_text_in_tables_is_no_formula_and_no_markup(tmp_path, name):
    run_dir = write_run(tmp_path / "run", [trial(1, name=name), trial(2)])
    write_report(run_dir)
    (header, first, _), markdown = tables(run_dir)["trials"], (run_dir / "report_tables" / "trials.md").read_text()
    assert dict(zip(header, first, strict=True))["trial"].split() == (f"'{name}" if name[0] in "=+-@" else name).split()
    row = next(line for line in markdown.splitlines() if line.startswith("|") and "resnet18" in line)
    assert not re.search(r"(?<!\\)[`\[<]", row)
    assert len(re.findall(r"(?<!\\)\|", row)) == len(header) + 1


def test_a_benchmarks_questions_stand_apart_by_what_was_varied(tmp_path):
    page = render(bench_run(tmp_path / "run"))
    assert page.text.count("Ranked by method baseline") == 1  # the cache's state and these sizes changed no ranking
    for question in ("80 train items, cache warm", "160 train items, cache cold"):
        assert f"shapes-shape-b, {question}" in page.text
    assert "Over 4 questions, alsatian is 4.0× faster than baseline (geometric mean; 4.0× to 4.0×)" in page.text
    assert "shift: other processes took 34 % of the CPUs" in page.text
    assert sum(value.startswith("mark bound") for value in page.values("class")) == 4 * 4
    assert page.text.count("Rung by rung") == 4
    assert "12 candidates × 10 items, 6 kept" in page.text
    assert "the largest pretrained model, 011-resnet18-shapes-shape-a-r2: rank 12, score 0.780" in page.text


def test_rungs_are_split_by_phase_where_that_was_timed(tmp_path):
    row = bench_row("shift", 0, ranking_of([trial(1), trial(2)]))
    for rung in row["search"]["rungs"]:
        rung["timings_s"] = {"total": 1.0, "inference": 0.7, "proxy": 0.2}
    page = render(write_run(tmp_path / "run", [row]))
    assert "shift, rung 3, inference: 700" in page.text
    assert tables(tmp_path / "run")["rungs_01"][0].count("inference_s") == 1


def test_a_run_that_was_to_be_cold_and_was_not_is_not_shown_as_cold(tmp_path):
    ranking = ranking_of([trial(1), trial(2)])
    rows = [bench_row("shared", k, ranking, cache="cold") for k in range(2)]
    rows[1]["page_cache"]["state"] = "mixed"
    page = render(write_run(tmp_path / "run", rows))
    assert "cache cold" in page.text
    assert "cache mixed, not cold as asked" in page.text


def test_a_search_whose_time_is_not_split_is_drawn_as_one_piece(tmp_path):
    row = search("shared", 0, ranking_of([trial(1), trial(2)]))
    row["search"]["timings_s"] = {"total": 3.0}
    page = render(write_run(tmp_path / "run", [row]))
    assert "not split by phase: 3.00" in page.text
    assert "mark phase-inference" not in page.values("class")


def test_what_search_printed_makes_a_report(tmp_path):
    document = search("nested", 0, ranking_of(some_trials()))["search"] | {"proxy": "linear", "dataset": "pets"}
    (tmp_path / "found.json").write_text(json.dumps(document))
    (tmp_path / "other.json").write_text("[]")
    assert write_report(tmp_path / "found.json") == tmp_path / "found.html"
    assert "The best start for pets is" in Page(tmp_path / "found.html").text
    page = render(tmp_path)
    assert "The best start for pets is" in page.text
    assert "What sharing blocks saves" not in page.text  # nothing is known of the store


def test_the_proxy_is_held_against_what_candidates_reached_once_fine_tuned(tmp_path):
    starts = [trial(n, dataset="set-a") for n in range(4)]
    reached = [0.9, 0.7, 0.8, 0.6]  # one of six pairs is the other way round: tau = (5 - 1) / 6
    tuned = [
        trial(10 + n, dataset="target", base=one["snapshot"], metrics={"val_accuracy": accuracy})
        for n, (one, accuracy) in enumerate(zip(starts, reached, strict=True))
    ]
    run_dir = write_run(tmp_path / "run", [*starts, *tuned])
    write_run(run_dir / "bench", [search("shared", 0, ranking_of(starts), dataset="target")])
    page = render(run_dir)
    assert "Kendall's tau between linear score and val accuracy is 0.67" in page.text
    assert "the candidate with the highest score ends 0.000 below the best one" in page.text


def test_a_grid_answers_the_studys_questions_from_pairs_that_differ_in_nothing_else(tmp_path):
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


def test_a_pair_that_ends_the_other_way_round_is_told(tmp_path):
    points = [("a", "x", 0.9), ("a", "y", 0.5), ("b", "x", 0.6), ("b", "y", 0.6)]
    rows = [sweep_trial(n, {"one": one, "two": two}, accuracy) for n, (one, two, accuracy) in enumerate(points)]
    page = render(write_run(tmp_path / "run", rows, kind="sweep"))
    assert (
        "one: a beats b in 1 of 2 pairs of otherwise identical trials, by 0.100 val accuracy on average (-0.100 to"
        in page.text
    )
    assert "two: x beats y in 1 of 2 pairs" in page.text


def test_what_is_sampled_only_for_one_value_parts_no_pair(tmp_path):
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


def test_a_random_search_claims_no_pairs_and_shows_each_parameter(tmp_path):
    run_dir = random_sweep(tmp_path / "run")
    page = render(run_dir)
    assert "beats" not in page.text
    assert "but these trials differ in other ways, too" in page.text
    assert "15 trials stopped before the last epoch, by the scheduler" in page.text
    assert "1 failure is listed below" in page.text
    assert page.values("class").count("mark trace best") == 1
    assert sum(value.startswith("mark trace") for value in page.values("class")) == 30
    assert tables(run_dir)["sweep_trials"][1][0] == "1"


def test_a_metric_that_is_to_be_small_ranks_the_smallest_first(tmp_path):
    rows = [sweep_trial(n, {"train.lr": lr}, 0.5, objective=lr * 10) for n, lr in enumerate((0.3, 0.1, 0.2))]
    text = render(write_run(tmp_path / "run", rows, kind="sweep", metric="val_loss", mode="min")).text
    assert "Best of 3 trials: lr = 0.1" in text
    assert "lr: 0.1 beats 0.2 by 1.000 val loss in the only pair of otherwise identical trials" in text


def test_mistakes_are_shown_as_pictures_the_most_confident_first(tmp_path):
    page = render(grid_sweep(tmp_path / "run", tmp_path / "pets"))
    described = [value for value in page.values("alt") if value.startswith("A test image")]
    assert described[:3] == [
        "A test image of owl, predicted as cat",
        "A test image of dog, predicted as owl",
        "A test image of cat, predicted as dog",
    ]
    assert len(described) == 3 + 12
    assert "classifies 15 of 18 test images correctly: accuracy 0.833, macro-F1 0.833" in page.text
    header, *rows = tables(tmp_path / "run")["classes"]
    assert [row[header.index("recall")] for row in rows] == ["0.8333333333333334"] * 3


def test_predictions_show_no_file_outside_their_dataset(tmp_path):
    run_dir = grid_sweep(tmp_path / "run", tmp_path / "pets")
    write_images(tmp_path / "secret", ["x"], 1)
    told = next(run_dir.glob("predictions/*.json"))
    document = json.loads(told.read_text())
    document["paths"][0] = "../secret/test/x/0.png"
    document["paths"][1] = str(tmp_path / "secret" / "test" / "x" / "0.png")
    told.write_text(json.dumps(document))
    assert "of 16 test images correctly" in render(run_dir).text


def test_predictions_whose_images_are_gone_keep_their_figures(tmp_path):
    run_dir = grid_sweep(tmp_path / "run", tmp_path / "pets")
    told = next(run_dir.glob("predictions/*.json"))
    told.write_text(json.dumps(json.loads(told.read_text()) | {"root": str(tmp_path / "gone")}))
    page = render(run_dir)
    assert "accuracy 0.833" in page.text
    assert "img" not in page.tags
    told.write_text("{")
    assert "Test predictions of the best model" not in render(run_dir).text


def test_a_dataset_that_is_at_hand_is_shown(tmp_path):
    write_images(tmp_path / "data" / "shapes-shape-a", ["cat", "dog"], 6)
    page = render(write_run(tmp_path / "run", [trial(1)], data_dir=str(tmp_path / "data")))
    assert page.values("alt")[:2] == ["An image of cat", "An image of dog"]
    assert len(page.values("alt")) == 10
    assert "2 classes, 12 train, 12 test images" in page.text


def test_the_prefix_tree_of_a_store_names_each_snapshot_once(tmp_path):
    trials = put_tree(Store.open(tmp_path / "store", create=True), 8, num_blocks=6)
    page = render(write_run(tmp_path / "run", trials, store=str(tmp_path / "store")))
    tree = re.search(r'<svg[^>]*aria-label="Prefix tree.*?</svg>', page.html, re.DOTALL)[0]
    shown = [element.text for element in ElementTree.fromstring(tree).iter("text")]
    assert all(shown.count(row["trial"]) == 1 for row in trials)
    assert "8" in shown
