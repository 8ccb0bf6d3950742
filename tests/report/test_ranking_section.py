"""Rankings in a report."""

from tests.support.report_pages import render
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
