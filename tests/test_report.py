"""A report shows all that a run directory holds, loads nothing, and stands whatever went wrong."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from raysnap.errors import DataError, UsageError
from raysnap.report import write_report
from raysnap.store import Store

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp; {{ 7 * 7 }} \x00\ud800"
METHODS = {"baseline": 8.0, "shift": 5.0, "shared": 3.0, "alsatian": 2.0}


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


def trial(number: int, *, dataset="shapes-shape-a", status="done", name=None, snapshot=None, **more) -> dict:
    accuracy = 0.5 + number / 1000
    return {
        "trial": name or f"{number:03d}-resnet18-{dataset}-r{number % 9}",
        "role": "finetune",
        "status": status,
        "error": None if status == "done" else f"it went wrong at {number}",
        "architecture": "resnet18",
        "dataset": dataset,
        "retrain_index": number % 9,
        "num_blocks": 8,
        "snapshot": snapshot or (f"{number:064x}" if status == "done" else None),
        "metrics": {"val_accuracy": accuracy, "test_accuracy": accuracy} if status == "done" else {},
        "history": [{"epoch": epoch, "val_accuracy": accuracy * epoch / 3} for epoch in (1, 2, 3)],
        "timings_s": {"train": 1.5, "total": 2.0},
        "new_bytes": 1000,
        "snapshot_bytes": 4000,
    } | more


def search(method: str, repeat: int, ranking: list[dict], *, dataset="shapes-shape-b", total_s=None, **more) -> dict:
    total_s = total_s or METHODS[method] * (1 + 0.01 * repeat)
    return {
        "cell": f"{dataset}.linear.{method}",
        "repeat": repeat,
        "status": "done",
        "error": None,
        "method": method,
        "proxy": "linear",
        "dataset": dataset,
        "search": {
            "method": method,
            "num_candidates": len(ranking),
            "ranking": ranking,
            "timings_s": {"total": total_s, "plan": 0.1, "load_blocks": 0.2, "inference": total_s / 2, "proxy": 0.3},
            "work": {"block_item_passes": 900, "flops": 1.5e9, "block_bytes_read": 10**6, "images_decoded": 100},
            "peak_activation_bytes": 123_000,
            "skipped": [],
        },
    } | more


def ranking_of(trials: list[dict]) -> list[dict]:
    done = [row for row in trials if row["snapshot"]]
    return [
        {
            "rank": rank,
            "snapshot": row["snapshot"],
            "name": row["trial"],
            "score": 0.9 - 0.01 * rank,
            "num_train": 80,
            "num_test": 20,
            "tied_with_best": rank <= 2,
        }
        for rank, row in enumerate(done, start=1)
    ]


def write_run(run_dir: Path, rows: list, **config) -> Path:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (run_dir / "config.yaml").write_text(json.dumps({"kind": "generate", "store": "no-such-store"} | config), "utf-8")
    env = {"torch": "2.15.0", "cpu": "a CPU", "seed": 7, "gpus": [], "wall_s": 60.0, "stages_s": {"data": 5, "base": 9}}
    (run_dir / "env.json").write_text(json.dumps(env), "utf-8")
    return run_dir


def quickstart(run_dir: Path, trials: list[dict], repeats: int = 3) -> Path:
    write_run(run_dir, trials)
    write_run(run_dir / "bench", [search(m, k, ranking_of(trials)) for m in METHODS for k in range(repeats)])
    return run_dir


def render(run_dir: Path) -> Page:
    page = Page(write_report(run_dir))
    for svg in re.findall(r"<svg.*?</svg>", page.html, re.DOTALL):
        ElementTree.fromstring(svg)
    return page


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
    assert "10 snapshots of resnet18 were fine-tuned on 3 datasets in 60.0 s all told" in page.text
    assert "1 trial failed and 1 trial diverged" in page.text
    assert "best start of 10 candidates is 000-resnet18-shapes-shape-a-r0, fine-tuned on shapes-shape-a" in page.text
    assert "linear score 0.890 on 20 held-out items; 1 other is tied with it" in page.text
    assert "alsatian, answers in 2.02 s, 4.0× faster than baseline (8.08 s), median of 3 runs" in page.text
    assert "added 10.0 kB to the store where whole copies would take 40.0 kB" in page.text


def test_the_summary_says_how_much_of_the_trials_time_was_training(tmp_path):
    timed = [trial(1, wall_s=4.0, overhead_s=0.5), trial(2, wall_s=6.0, overhead_s=1.5)]
    untimed = [trial(3, wall_s=None, overhead_s=None), trial(4)]
    text = render(write_run(tmp_path / "run", [*timed, *untimed])).text
    assert "80 % of the fine-tunes' wall time was training; around each, 1.00 s went by besides." in text
    assert "wall time was training" not in render(write_run(tmp_path / "untimed", untimed)).text


def test_failures_are_named_with_their_reason(tmp_path):
    trials = some_trials()
    run_dir = quickstart(tmp_path / "run", trials)
    broken = search("shift", 0, [], dataset="other") | {"status": "failed", "error": "out of memory", "search": None}
    skipping = search("alsatian", 9, ranking_of(trials))
    skipping["search"]["skipped"] = [{"snapshot": trials[3]["snapshot"], "error": "block damaged"}]
    with (run_dir / "bench" / "results.jsonl").open("a") as file:
        file.write(json.dumps(broken) + "\n" + json.dumps(skipping) + "\n")
    page = render(run_dir)
    assert "4 failures are named below" in page.text
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
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert not any(key.startswith("on") for _, key, _ in page.attributes)
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
    assert "1 line of results.jsonl can't be read" in page.text
    assert len(page.values("data-trial")) == len(some_trials())


def test_a_trial_that_was_run_again_counts_once_with_its_last_row(tmp_path):
    page = render(write_run(tmp_path / "run", [trial(1, status="failed"), trial(2), trial(1)]))
    assert len(page.values("data-trial")) == 2
    assert "What went wrong" not in page.text


def test_trials_that_were_planned_but_not_run_are_counted(tmp_path):
    run_dir = write_run(tmp_path / "run", [trial(0)])
    (run_dir / "trials.jsonl").write_text("".join(json.dumps({"id": trial(n)["trial"]}) + "\n" for n in range(5)))
    page = render(run_dir)
    assert "4 planned trials have not finished" in page.text
    assert "of 5 fine-tunes done" in page.text


def test_a_run_of_which_nothing_finished_still_has_a_report(tmp_path):
    page = render(write_run(tmp_path / "run", [trial(n, status="failed", history=[]) for n in range(4)]))
    assert "No trial of this run finished" in page.text
    assert "No fine-tune finished in 60.0 s all told; 4 trials failed." in page.text
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
    assert "shared answers in 3.00 s (one run each)" in page.text


def test_a_hundred_and_fifty_trials_make_a_page_of_bearable_length(tmp_path):
    trials = [trial(n, dataset=f"set-{n % 8}") for n in range(150)]
    page = render(quickstart(tmp_path / "run", trials))
    assert len(page.values("data-trial")) == 150
    assert "Show all 150 candidates" in page.text
    assert len(page.html) < 2_000_000


def test_a_bare_bench_run_has_rankings_and_times_but_no_trials(tmp_path):
    ranking = ranking_of([trial(n) for n in range(4)])
    rows = [search(m, k, ranking, dataset=d) for m in METHODS for k in range(2) for d in ("set-a", "set-b")]
    page = render(write_run(tmp_path / "run", rows, kind="bench"))
    assert "4 search methods timed on 2 datasets" in page.text
    assert "Every trial" not in page.text
    assert page.text.count("Ranked by baseline") == 2


def test_the_laws_of_the_methods_are_checked_on_the_run(tmp_path):
    trials = some_trials()
    ranking, other = ranking_of(trials), ranking_of(trials[::-1])
    rows = [search("baseline", 0, ranking), search("shared", 0, ranking), search("shift", 0, ranking)]
    run_dir = write_run(tmp_path / "run", trials)
    write_run(run_dir / "bench", [*rows, search("alsatian", 0, other)])
    page = render(run_dir)
    assert "shared gives every candidate the score that baseline gives" in page.text
    assert "shared ranks as baseline does" in page.text
    assert "alsatian does not rank as shift does" in page.text
    assert "but its winner scores 0.090 lower" in page.text


def test_times_that_vary_are_flagged(tmp_path):
    ranking = ranking_of(some_trials())
    rows = [search("baseline", k, ranking, total_s=s) for k, s in enumerate((5.0, 8.0, 12.0))]
    rows += [search("alsatian", k, ranking, total_s=s) for k, s in enumerate((2.0, 2.01, 2.02))]
    page = render(write_run(tmp_path / "run", rows))
    assert page.text.count("noisy") == 1
    assert "baseline: the middle half of the runs spreads over more than 10 % of the median" in page.text


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
    assert "The store keeps 6 snapshots" in page.text
    assert sum(value.startswith("mark own") for value in page.values("class")) == 6
    assert sum(value.startswith("mark shared") for value in page.values("class")) == 2
    assert "chance" in page.text


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
    assert "As the run recorded it, its snapshots added 10.0 kB" in page.text


def test_a_missing_store_is_said_and_the_runs_own_records_stand_in(tmp_path):
    page = render(write_run(tmp_path / "run", some_trials()))
    assert "No store stands at no-such-store" in page.text
    assert "its snapshots added 10.0 kB to the store; whole copies would take 40.0 kB" in page.text
