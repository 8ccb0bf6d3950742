"""A timed search's row: what a benchmark writes is what a report reads."""

import json

import pytest

from raysnap.config.choices import Status
from raysnap.runs.search_rows import SearchRow

DOCUMENT = {
    "dataset": "shapes-colour-a",
    "num_candidates": 2,
    "ranking": [
        {
            "rank": 1,
            "snapshot": "b" * 64,
            "name": "b",
            "score": 0.75,
            "num_train": 8,
            "num_test": 4,
            "tied_with_best": True,
        }
    ],
    "timings_s": {"total": 2.0, "plan": 0.5},
    "work": {"flops": 7},
    "precision": "float32",
    "skipped": [{"snapshot": "a" * 64, "name": "a", "error": "damaged"}],
    "rungs": [
        {"num_candidates": 2, "num_train": 8, "num_test": 4, "num_kept": 1, "expected_loss": 0.02, "total_s": 1.5}
    ],
    "static_baseline": None,
}
DONE = SearchRow(
    cell="shapes-colour-a.linear.shared",
    store="store",
    dataset="shapes-colour-a",
    proxy="linear",
    method="shared",
    cache="cold",
    status=Status.DONE,
    search=DOCUMENT,
    wall_s=2.5,
    page_cache={"state": "cold"},
    io={"read_bytes": 3},
    is_noisy=True,
    noise=["why"],
    repeat=1,
)
FAILED = SearchRow(cell="c", method="nested", status=Status.FAILED, error="it broke")


@pytest.mark.parametrize("row", [DONE, FAILED], ids=["done", "failed"])
def test_a_row_that_is_written_is_read_as_it_was(row):
    written = json.dumps(row.as_json())
    assert json.dumps(SearchRow.read(json.loads(written)).as_json()) == written


def test_a_failed_run_has_no_measurements():
    row = FAILED.as_json()
    assert (row["status"], row["error"], row["search"]) == ("failed", "it broke", None)
    assert not row.keys() & {"wall_s", "io", "memory", "page_cache", "noise"}
    assert not FAILED.is_done


def test_a_rows_document_is_read_by_its_parts():
    (line,), (rung,) = DONE.ranking, DONE.rungs
    assert (line.name, line.score, line.is_tied) == ("b", 0.75, True)
    assert (rung.num_kept, rung.total_s, rung.has_phases) == (1, 1.5, False)
    assert DONE.phases_s["plan"] == 0.5 and DONE.phases_s["rest"] == 1.5
    assert DONE.skipped == (("a" * 64, "damaged"),)
    assert (DONE.total_s, DONE.computed_precision, DONE.read_bytes) == (2.0, "float32", 3.0)


def test_a_run_that_was_not_cold_is_not_compared_as_cold():
    assert dict(DONE.setting)["cache"] == "cold"
    warm = SearchRow.read(DONE.as_json() | {"page_cache": {"state": "warm"}})
    assert dict(warm.setting)["cache"] == "warm, not cold as asked"


def test_a_field_of_another_kind_is_unknown():
    row = SearchRow.read({"method": "shared", "wall_s": "long", "search": [], "noise": 3, "is_noisy": True})
    assert (row.wall_s, row.search, row.ranking, row.total_s) == (None, {}, (), None)
    assert list(row.noise) == ["the run flagged itself"]
    assert row.status == Status.UNKNOWN
