"""The quickstart as a user runs it, and what must hold of what it leaves behind."""

import json
import re

import pytest

from raysnap.store.store import Store

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def answer(quickstart):
    assert quickstart.finished.returncode == 0, quickstart.finished.stderr
    return json.loads(quickstart.finished.stdout)


def by_method(answer):
    return {search["method"]: search for search in answer["searches"]}


def scores(search):
    return {entry["snapshot"]: entry["score"] for entry in search["ranking"]}


def test_it_leaves_eight_snapshots_of_four_datasets_and_a_report(quickstart, answer):
    manifests = Store.open(quickstart.directory / "store").manifests()
    assert answer["num_snapshots"] == len(manifests) >= 8
    assert len({manifest.dataset.name for manifest in manifests if manifest.base}) >= 4
    assert answer["num_failed"] == 0
    assert "<svg" in (quickstart.directory / "run" / "report.html").read_text()
    assert Store.open(quickstart.directory / "store").verify()["ok"]


def test_its_methods_agree_as_they_promise(answer):
    searches = by_method(answer)
    assert len(searches) >= 3
    assert scores(searches["shared"]) == scores(searches["baseline"])
    ranked = {method: [entry["snapshot"] for entry in searches[method]["ranking"]] for method in searches}
    assert ranked["alsatian"] == ranked["shift"]
    assert searches["shared"]["work"]["flops"] < searches["baseline"]["work"]["flops"]
    assert searches["alsatian"]["work"]["flops"] < searches["shift"]["work"]["flops"]


def test_every_method_ranks_the_related_task_first(answer):
    for search in answer["searches"]:
        assert search["dataset"] == "shapes-orientation-b"
        assert "shapes-orientation-a" in search["ranking"][0]["name"]


def test_its_log_is_quiet_and_each_line_says_how_far_it_is(quickstart):
    lines = quickstart.finished.stderr.splitlines()
    shown = [line for line in lines if re.match(r"\[ *\d+ s\] (Ray|Data|Base|Fine-tunes|Searches) +\d+/\d+", line)]
    assert shown == lines
    assert len([line for line in lines if "still at it" not in line]) < 60


def test_running_it_again_repeats_nothing(quickstart, answer):
    again = quickstart.run()
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["searches"] == answer["searches"]
    assert "1/8" not in again.stderr
