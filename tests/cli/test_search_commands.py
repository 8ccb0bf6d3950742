"""`raysnap search`: its JSON keys, its table, and its explanation."""

import inspect
import json

import pytest

from raysnap.cli import search_commands
from raysnap.cli.app import main
from raysnap.cli.search_commands import search
from raysnap.config.search_options import SearchOptions
from raysnap.errors import UsageError
from tests.support.cli_commands import process, run_json, run_text


def test_a_search_in_a_process_prints_only_one_document(here):
    done = process("search", "--data", "pets", "--json", cwd=here)
    assert done.returncode == 0 and all(line.startswith("[") for line in done.stderr.splitlines()), done.stderr
    assert json.loads(done.stdout)["num_candidates"] == 2


def test_every_candidate_is_ranked_with_documented_keys(here, capsys):
    document = run_json(capsys, "search", "--data", "pets", "--method", "shared", "--num-test", "6")
    assert {
        "method", "proxy", "num_candidates", "ranking", "timings_s", "work", "peak_activation_bytes",
        "peak_memory_bytes", "skipped", "data",
    } <= set(document)  # fmt: skip
    assert [entry["rank"] for entry in document["ranking"]] == [1, 2]
    assert {entry["name"] for entry in document["ranking"]} == {"base", "tuned"}
    assert set(document["ranking"][0]) >= {"snapshot", "score", "num_train", "num_test", "tied_with_best"}
    assert set(document["timings_s"]) >= {"total", "plan", "load_blocks", "decode", "inference", "proxy"}
    assert set(document["work"]) >= {"block_item_passes", "flops", "block_bytes_read", "images_decoded"}


def test_search_takes_a_path_and_shows_a_table(here, capsys):
    out = run_text(capsys, "search", "--data", "data/pets", "--method", "baseline", "--where", "retrain_index == 0")
    assert "tuned" in out and "best" in out
    assert "1\u00a0candidate by baseline" in out
    assert "Without a search, the choice would be the largest base snapshot, tuned: rank 1 of 1" in out


def test_explain_shows_shared_blocks_and_rungs(here, capsys):
    out = run_text(capsys, "search", "--data", "pets", "--explain", "--feature-cache", "0", "--method", "nested")
    assert "resnet18 stem … layer4.1" in out and "2\u00a0candidates  100\u00a0% of the compute  → " in out
    assert (
        out.index("What candidates share")
        < out.index("block passes")
        < out.index("choice would be the largest base snapshot, base")
    )


def test_explain_sets_what_was_forecast_beside_what_came(here, capsys):
    out = run_text(capsys, "search", "--data", "pets", "--explain", "--time-budget", "10 min")
    forecast = [line.split("  ")[0] for line in out.splitlines() if line.startswith(("forecast:", "came:"))]
    taken = forecast[-1].removeprefix("came: ")
    assert forecast == ["forecast: shared", "forecast: nested", f"came: {taken}"] and taken in ("shared", "nested")
    assert f"`{taken}` was taken: it is forecast to answer soonest, in " in out
    assert "items fit the 10\u00a0min\u00a000\u00a0s left of the time budget." in out


def test_json_has_the_forecast_too(here, capsys):
    forecast = run_json(capsys, "search", "--data", "pets", "--method", "baseline")["forecast"]
    assert set(forecast) == {"asked", "reason", "methods", "came"} and forecast["asked"] == "baseline"
    stages = {"start", "load_blocks", "decode", "inference", "proxy", "total"}
    for one in (*forecast["methods"], forecast["came"]):
        assert set(one) == {"method", "timings_s", "image_forwards", "rungs"} and set(one["timings_s"]) == stages
        assert set(one["rungs"][0]) == {"num_candidates", "num_train", "num_test", "total_s"}


def test_a_time_budget_that_is_no_time_is_refused(here):
    done = process("search", "--data", "pets", "--time-budget", "soon", cwd=here)
    assert done.returncode == 2 and "expected a duration such as 30s, 5m or 1h30m, found 'soon'" in done.stderr


@pytest.mark.parametrize(("start_s", "left_s"), [(0.0, 30.0), (12.0, 18.0), (31.0, 0.001)])
def test_a_time_budget_counts_from_the_start(here, capsys, monkeypatch, start_s, left_s):
    monkeypatch.setattr("raysnap.cli.search_commands.since_enter_s", lambda: start_s)
    asked = []

    def search(store, data, options, on_progress):
        asked.append(options.time_budget_s)
        raise UsageError("asked")

    monkeypatch.setattr("raysnap.search.search", search)
    assert main(["search", "--data", "pets", "--time-budget", "30s"]) == 2
    assert asked == [left_s]


def test_a_second_search_reads_what_the_first_left(here, capsys):
    first, again = (run_json(capsys, "search", "--data", "pets", "--image-size", "24") for _ in range(2))
    assert first["ranking"] == again["ranking"]
    assert first["work"]["block_item_passes"] > 0 == again["work"]["block_item_passes"]


def test_a_search_that_reaches_its_most_items_says_so(here, capsys, monkeypatch):
    monkeypatch.setattr(search_commands, "DEFAULT_NUM_TRAIN", 8)
    asked = ("search", "--data", "pets", "--method", "shared", "--image-size", "24")
    said = run_text(capsys, *asked, "--num-train", "8")
    assert "8 train and" in said and "0 takes all" in said
    assert "takes all" not in run_text(capsys, *asked, "--num-train", "0")


def test_no_limit_of_items_is_all_of_them(here, capsys):
    asked = ["--num-train", "0", "--num-test", "0"]
    found = run_json(capsys, "search", "--data", "pets", "--method", "shared", "--image-size", "24", *asked)
    num_images = found["data"]["num_images"]
    assert (found["rungs"][-1]["num_train"], found["rungs"][-1]["num_test"]) == (num_images["train"], num_images["val"])


def test_defaults_are_those_of_search_options():
    defaults = {name: one.default for name, one in inspect.signature(search).parameters.items()}
    fields = SearchOptions.model_fields
    differing = {name for name in defaults.keys() & fields.keys() if defaults[name] != fields[name].default}
    assert differing == {"feature_cache_bytes"}  # the command line keeps features for later searches
