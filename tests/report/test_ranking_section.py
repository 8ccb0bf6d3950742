"""Rankings in a report."""

import json

from tests.support.image_folders import make_folder
from tests.support.report_pages import render, tables
from tests.support.report_runs import (
    ranking_of,
    search,
    trial,
    write_run,
)


def test_the_proxy_is_compared_with_fine_tuned_accuracy(tmp_path):
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


def test_methods_that_rank_alike_are_named_once(tmp_path):
    starts = [trial(n, dataset="set-a") for n in range(4)]
    run_dir = write_run(tmp_path / "run", starts)
    turned = ranking_of([*starts[:2], starts[3], starts[2]])
    rankings = {"baseline": ranking_of(starts), "shared": ranking_of(starts), "shift": turned}
    write_run(run_dir / "bench", [search(method, 0, ranking) for method, ranking in rankings.items()])
    page = render(run_dir)
    assert "shared ranks them alike. The columns named after the other methods show their ranks." in page.text
    [header, *_] = tables(run_dir)["ranking_01"]
    assert "rank_shift" in header and "rank_shared" not in header


def test_ones_own_search_says_what_to_do_next(tmp_path):
    make_folder(tmp_path / "data" / "pets", {"train/cat": 2, "train/dog": 2})
    row = search("shared", 0, ranking_of([trial(n) for n in range(3)]), dataset="pets")["search"] | {"dataset": "pets"}
    asked = {"store": str(tmp_path / "store"), "data": str(tmp_path / "data" / "pets")}
    row["inputs"] = [{"image_size": 96, "num_candidates": 3, "mean": [0.5] * 3}]
    (tmp_path / "found.json").write_text(
        json.dumps(row | {"asked": asked | {"environment": {"cpu": "Abacus", "finished": "2026-01-02T03:04:05Z"}}})
    )
    page = render(tmp_path / "found.json")
    assert f"raysnap finetune --data {asked['data']} --store {asked['store']}" in page.text
    assert "Candidates see items at 96 px." in page.text and "2026-01-02 03:04 UTC" in page.text
    assert "Abacus" in page.text and "2 classes, 4 train" in page.text
