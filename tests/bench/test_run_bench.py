"""Benchmarks on a real local Ray: a row per timed search, and the methods' laws hold between them."""

import json
import os
import signal
import threading
from typing import get_args

import pytest

from raysnap.bench.cells import plan_bench
from raysnap.bench.run_bench import bench
from raysnap.cli.app import main
from raysnap.cli.search_tables import methods_table
from raysnap.config.bench import BenchConfig
from raysnap.config.choices import Method
from raysnap.config.jobs import SyntheticRecipe
from raysnap.config.load import find_config
from raysnap.errors import StoreError
from raysnap.models import blocks
from raysnap.runs.json_fields import read_rows
from raysnap.store.preprocessing import Preprocessing
from raysnap.store.store import Store
from tests.support.terminal import shown

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
    assert {row["num_threads"] for row in rows} == {int(os.environ.get("OMP_NUM_THREADS", "2"))}


def test_what_rows_have_in_common_stands_once_beside_them(finished, config):
    rows = read_rows(config.run_dir / "results.jsonl")
    env = json.loads((config.run_dir / "env.json").read_text())
    assert {row["machine"] for row in rows} == env["machines"].keys()
    assert all("machine_facts" not in row for row in rows)
    assert next(iter(env["machines"].values()))["torch"] == env["torch"]


def test_a_summary_has_each_cells_median_and_spread(finished):
    assert [cell["method"] for cell in finished.cells] == list(METHODS)
    for cell, search in zip(finished.cells, finished.searches, strict=True):
        assert cell["num_done"] == 2
        assert cell["flops"] == search["work"]["flops"]
        assert cell["iqr_s"] <= cell["median_s"]
    table = shown(methods_table(finished.cells))
    assert [row[0].strip() for row in table[1:]] == list(METHODS)


def test_the_methods_keep_their_laws(finished):
    by_method = {search["method"]: search for search in finished.searches}
    scores = {
        method: {entry["snapshot"]: entry["score"] for entry in search["ranking"]}
        for method, search in by_method.items()
    }
    assert scores["shared"] == scores["baseline"]
    assert by_method["alsatian"]["ranking"] == by_method["shift"]["ranking"]
    assert by_method["shared"]["work"]["flops"] < by_method["baseline"]["work"]["flops"]


def test_a_resumed_benchmark_repeats_no_finished_search(finished, config, tmp_path):
    """A real SIGINT hits the driver while a search runs in another process; the last row is torn besides."""
    own = config.model_copy(update={"run_dir": tmp_path / "run", "methods": ("shared", "alsatian"), "num_warmups": 0})
    timers = []

    def interrupt(verb, num_done, num_all, name) -> None:
        if verb == "bench" and num_done == 2:
            timers.append(threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)))
            timers[-1].start()

    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job takes no notice of it
    try:
        with pytest.raises(KeyboardInterrupt):
            bench(own, on_progress=interrupt)
    finally:
        signal.signal(signal.SIGINT, ignored)
    path = own.run_dir / "results.jsonl"
    before = path.read_bytes()
    assert 2 <= before.count(b"\n") < 4
    path.write_bytes(before + b'{"cell": "torn')
    assert bench(own, resume=True, on_progress=quiet).num_searches == 4
    assert path.read_bytes().startswith(before)
    rows = [(row["cell"], row["repeat"]) for row in read_rows(path)]
    assert len(rows) == len(set(rows)) == 4


def test_a_synthetic_set_is_made_once_for_all_benchmarks(ray_local, config, tmp_path):
    recipe = SyntheticRecipe(num_snapshots=2, num_classes=4, image_size=32)
    update = {"store": ("two",), "synthetic_dir": tmp_path, "methods": ("shared",), "repeats": 1, "num_warmups": 0}
    own = config.model_copy(update=update | {"synthetic_sets": {"two": recipe}, "run_dir": tmp_path / "first"})
    assert bench(own, on_progress=quiet).searches[0]["num_candidates"] == 2
    verbs = []
    again = own.model_copy(update={"run_dir": tmp_path / "second"})
    assert bench(again, on_progress=lambda verb, *_: verbs.append(verb)).num_failed == 0
    assert set(verbs) == {"bench"}
    assert {row["store"] for row in read_rows(again.run_dir / "results.jsonl")} == {"two"}


def test_a_search_that_fails_is_a_row_with_its_error(ray_local, config, tmp_path):
    update = {"run_dir": tmp_path / "run", "budget_bytes": (1,), "repeats": 1, "methods": ("shared",)}
    summary = bench(config.model_copy(update=update), on_progress=quiet)
    assert (summary.num_searches, summary.num_failed, summary.searches) == (1, 1, [])
    assert "--budget 1" in summary.failures[0]["error"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cache=hot", "cache: expected 'warm' or 'cold', found 'hot'"),
        ("num_train=[1, 2, 3]", "lists of equal length"),
        ("store=synthetic_61", "synthetic_61: expected a model store, found nothing there"),
        ("groups.a.methods=[alsation]", "groups.a.methods.0: expected"),
        ("synthetic_sets.synthetic_12.architectures=[resnet19]", "resnet19"),
        ("run_dir=a-file", "run_dir a-file: expected a folder"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys, override, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").touch()
    assert main(["bench", str(find_config("search_bench_small")), "num_test=[10, 20]", override]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]


def test_a_dry_run_lists_cells_and_work_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", str(find_config("search_bench_small")), "--dry-run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["num_cells"], document["num_searches"]) == (10, 30)
    assert {(cell["cache"], cell["method"]) for cell in document["cells"]} == {
        (cache, method) for cache in ("cold", "warm") for method in get_args(Method)
    }
    assert all(0 < cell["work"]["flops"] <= document["cells"][0]["work"]["flops"] for cell in document["cells"])
    assert list(document["synthetic_sets_to_make"]) == ["synthetic_12"]
    assert not list(tmp_path.iterdir())


def test_a_missing_store_is_refused_and_nothing_is_written(config, tmp_path):
    with pytest.raises(StoreError, match="expected a model store"):
        plan_bench(config.model_copy(update={"store": (tmp_path / "store",)}))
    assert not list(tmp_path.iterdir())
