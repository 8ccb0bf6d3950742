"""Benchmarks on a real local Ray: a row per timed search, and the methods' laws hold between them."""

import pytest

from raysnap import blocks
from raysnap.bench import bench, plan_bench
from raysnap.config import BenchConfig
from raysnap.errors import StoreError
from raysnap.manifest import Preprocessing
from raysnap.runs import read_rows
from raysnap.store import Store

METHODS = ("baseline", "shift", "alsatian", "shared")


def quiet(*progress) -> None:
    pass


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> BenchConfig:
    directory = tmp_path_factory.mktemp("bench")
    store = Store.open(directory / "store", create=True)
    base = blocks.random_tensors("resnet18", 4, 0)
    for seed in range(5):
        other = blocks.random_tensors("resnet18", 4, seed)
        store.put_snapshot(
            architecture="resnet18",
            blocks=[*base[: 9 - seed], *other[9 - seed :]],
            num_classes=4,
            preprocessing=Preprocessing(resize_size=36, image_size=32),
        )
    return BenchConfig(
        run_dir=directory / "run",
        store=directory / "store",
        data_dir=directory / "data",
        datasets=("shapes-colour-a",),
        methods=METHODS,
        image_size=32,
        num_train=40,
        num_test=20,
        shapes={"image_size": 36, "num_train": 40, "num_val": 20, "num_test": 0},
        repeats=2,
    )


@pytest.fixture(scope="module")
def finished(ray_local, config):
    return bench(config, on_progress=quiet)


def test_each_method_is_timed_as_often_as_asked_and_alone(finished, config):
    rows = read_rows(config.run_dir / "results.jsonl")
    assert [(row["repeat"], row["method"]) for row in rows] == [(n, method) for n in (0, 1) for method in METHODS]
    assert {row["status"] for row in rows} == {"done"}
    assert {row["num_threads"] for row in rows} == {2}


def test_the_methods_keep_their_laws(finished):
    by_method = {search["method"]: search for search in finished.searches}
    scores = {
        method: {entry["snapshot"]: entry["score"] for entry in search["ranking"]}
        for method, search in by_method.items()
    }
    assert scores["shared"] == scores["baseline"]
    assert by_method["alsatian"]["ranking"] == by_method["shift"]["ranking"]
    assert by_method["shared"]["work"]["flops"] < by_method["baseline"]["work"]["flops"]


def test_a_benchmark_cut_short_repeats_no_finished_search(finished, config):
    path = config.run_dir / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + lines[5][:40])
    assert bench(config, resume=True, on_progress=quiet).num_searches == 8
    assert path.read_bytes().splitlines(keepends=True)[:5] == lines[:5]


def test_a_search_that_fails_is_a_row_with_its_error(ray_local, config, tmp_path):
    update = {"run_dir": tmp_path / "run", "budget_bytes": 1, "repeats": 1, "methods": ("shared",)}
    summary = bench(config.model_copy(update=update), on_progress=quiet)
    assert (summary.num_searches, summary.num_failed, summary.searches) == (1, 1, [])
    assert "--budget 1" in summary.failures[0]["error"]


def test_a_store_that_is_not_there_is_refused_before_anything_is_written(config, tmp_path):
    with pytest.raises(StoreError, match="expected a model store"):
        plan_bench(config.model_copy(update={"store": tmp_path / "store"}))
    assert not list(tmp_path.iterdir())
