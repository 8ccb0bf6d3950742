"""Stores in a report: savings and shared blocks, and stores that are damaged, moved or missing."""

import re
from xml.etree import ElementTree

from raysnap.store.store import Store
from tests.support.report_pages import put_family, render, some_trials
from tests.support.report_runs import (
    put_tree,
    trial,
    write_run,
)


def test_the_store_shows_savings_and_shared_blocks(tmp_path):
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


def test_without_a_store_the_runs_records_are_used(tmp_path):
    page = render(write_run(tmp_path / "run", some_trials()))
    assert "There is no store at no-such-store" in page.text
    assert "the run added 10.0 kB to the store; whole copies would have taken 40.0 kB" in page.text


def test_the_prefix_tree_of_a_store_names_each_snapshot_once(tmp_path):
    trials = put_tree(Store.open(tmp_path / "store", create=True), 8, num_blocks=6)
    page = render(write_run(tmp_path / "run", trials, store=str(tmp_path / "store")))
    tree = re.search(r'<svg[^>]*aria-label="Prefix tree.*?</svg>', page.html, re.DOTALL)[0]
    shown = [element.text for element in ElementTree.fromstring(tree).iter("text")]
    assert all(shown.count(row["trial"]) == 1 for row in trials)
    assert "8" in shown
