"""The result of a search: its keys, its data frame, rungs that add up."""

import json

import pytest

from raysnap.search import search
from tests.support.searches import (
    DATA,
    METHODS,
    SHAPES,
    VARIANTS,
    copy_store,
    flip_a_bit,
)

pytestmark = [pytest.mark.usefixtures("single_thread"), pytest.mark.xdist_group("searches")]


def test_a_result_is_plain_json_with_its_keys(find, resnets):
    result = find(resnets, method="alsatian")
    document = result.to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == json.loads(json.dumps(document))
    assert set(document) - {"dataset"} == {
        "method", "proxy", "num_candidates", "ranking", "timings_s", "work", "bound_s", "precision",
            "peak_activation_bytes", "peak_memory_bytes", "skipped", "rungs", "static_baseline", "expected_loss",
            "stopped", "narrowing", "forecast", "inputs", "even_image_size", "data", "records", "gain", "answered",
    }  # fmt: skip
    assert set(document["ranking"][0]) == {
        "rank", "snapshot", "name", "score", "num_train", "num_test", "tied_with_best", "within_tolerance",
            "low", "high", "num_scored", "proxy_rank", "standing", "num_datasets", "architecture", "dataset",
            "retrain_index", "is_trained_on_it",
    }  # fmt: skip
    assert set(document["timings_s"]) == {"total", "plan", "load_blocks", "decode", "inference", "proxy"}
    assert set(document["work"]) == {"block_item_passes", "flops", "block_bytes_read", "images_decoded"}
    assert (document["method"], document["proxy"], document["dataset"]) == ("alsatian", "linear", DATA)
    parts = sum(seconds for stage, seconds in result.timings_s.items() if stage != "total")
    assert all(seconds >= 0 for seconds in result.timings_s.values()) and parts <= result.timings_s["total"]


def test_what_was_skipped_has_its_keys_too(mixed, data_dir, tmp_path):
    store, ids = copy_store(mixed, tmp_path)
    flip_a_bit(store, ids["resnet"], 3)
    document = search(store, DATA, data_dir=data_dir, method="shared").to_dict()
    (skipped,) = document["skipped"]
    assert skipped.keys() >= {"snapshot", "error"} and skipped["snapshot"] == ids["resnet"]


def test_a_results_data_frame_has_a_row_per_snapshot(find, resnets):
    result = find(resnets, method="shared")
    frame = result.to_pandas()
    assert frame["snapshot"].tolist() == [one.snapshot for one in result.ranking]
    assert frame["rank"].tolist() == list(range(1, len(VARIANTS) + 1))
    assert frame["score"].tolist() == [one.score for one in result.ranking]
    assert set(frame["architecture"]) == {"resnet18"} and (frame["low"] <= frame["score"]).all()
    assert (frame["score"] <= frame["high"]).all() and (frame["num_scored"] == SHAPES.num_val).all()


def test_rungs_say_what_each_did_and_add_up(find, mixed):
    for method in METHODS:
        result = find(mixed, method=method)
        assert result.rungs[0].num_candidates == result.num_candidates
        assert [rung.num_candidates for rung in result.rungs[1:]] == [rung.num_kept for rung in result.rungs[:-1]]
        for count in ("block_item_passes", "flops", "block_bytes_read"):
            assert sum(getattr(rung, count) for rung in result.rungs) == result.work[count]
        assert (result.rungs[-1].num_train, result.rungs[-1].num_test) == (SHAPES.num_train, SHAPES.num_val)


@pytest.mark.parametrize("method", ["shared", "nested"])
def test_the_gain_over_the_static_baseline_has_its_noise(find, mixed, method):
    result = find(mixed, method=method)
    first, static, gain = result.ranking[0], result.static_baseline, result.gain
    if first.snapshot == static.snapshot:
        assert gain is None
    else:
        assert gain.low <= gain.value <= gain.high and gain.num_scored <= first.num_scored
        if (first.num_train, first.num_test) == (static.num_train, static.num_test):
            assert gain.value == pytest.approx(first.score - static.score)


def test_what_is_taken_without_a_search_has_no_gain(find, resnets):
    assert find(resnets, method="shared", where="name == 'base'").gain is None
    assert find(resnets, method="shared", proxy="logme").gain is None, "its score is no accuracy"
