"""One timed search, without Ray: what a cold run reads, what a warm one doesn't, and what rows say of doubtful runs."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from raysnap.bench import timed_search
from raysnap.bench.block_reads import BlockReads
from raysnap.bench.cells import Cell, expand
from raysnap.bench.read_limit import ReadLimit
from raysnap.bench.timed_search import time_search
from raysnap.config.bench import BenchConfig
from raysnap.store.backends.folder import Folder
from raysnap.store.store import Store
from tests.support.real_disk import folder_on_disk
from tests.support.search_stores import one_thread, put, variant

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def cell() -> Iterator[Cell]:
    """Return a search over three snapshots that share blocks, on a disk."""
    with folder_on_disk() as directory:
        store = Store.open(directory / "store", create=True)
        for seed, retrain_index in ((0, 0), (1, 2), (2, 4)):
            put(store, "resnet18", variant("resnet18", seed, retrain_index))
        config = BenchConfig(
            store=directory / "store",
            data_dir=directory / "data",
            datasets="shapes-colour-a",
            methods="shared",
            image_size=32,
            num_train=20,
            num_test=10,
            shapes={"image_size": 36, "num_train": 40, "num_val": 20, "num_test": 0},
        )
        yield expand(config)[0]


@pytest.fixture(autouse=True)
def _few_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with one_thread():
        yield


def test_cold_runs_read_the_disk_and_warm_ones_hardly_do(cell):
    cold = time_search(replace(cell, cache="cold"))
    assert cold["page_cache"]["state"] == "cold"
    assert cold["page_cache"]["problem"] is None
    assert cold["io"]["needed_bytes"] > 45_000_000
    assert cold["io"]["read_bytes"] >= cold["io"]["needed_bytes"]
    assert cold["search"]["work"]["images_decoded"] == 0
    warm = time_search(replace(cell, cache="warm"))
    assert warm["page_cache"]["state"] == "warm"
    assert warm["io"]["read_bytes"] < warm["io"]["needed_bytes"] / 20
    assert warm["io"]["needed_bytes"] == cold["io"]["needed_bytes"]
    assert warm["search"]["ranking"] == cold["search"]["ranking"]


def test_needed_files_are_unique_blocks_without_heads_and_pixels(cell):
    store = Store.open(cell.store_dir)
    blocks = {
        block.digest: block.num_bytes for one in store.manifests() for block in one.blocks if block.name != "head"
    }
    outcome = time_search(cell)
    assert outcome["io"]["needed_bytes"] == sum(blocks.values()) + 30 * 3 * 32 * 32
    assert outcome["io"]["block_bytes"] == sum(blocks.values()) == outcome["search"]["work"]["block_bytes_read"]


@pytest.mark.skipif(not os.access(SHARED_MEMORY, os.W_OK), reason="there is no /dev/shm")
def test_a_run_that_can_not_be_cold_says_so(cell):
    store_dir = SHARED_MEMORY / f"raysnap-test-{os.getpid()}"
    try:
        shutil.copytree(cell.store_dir, store_dir)
        outcome = time_search(replace(cell, store_dir=store_dir, cache="cold"))
    finally:
        shutil.rmtree(store_dir)
    assert outcome["page_cache"]["state"] == "warm"
    assert "tmpfs" in outcome["page_cache"]["filesystems"]
    assert outcome["is_noisy"]
    assert "not cold" in outcome["page_cache"]["problem"]
    assert "tmpfs keeps its files" in "; ".join(outcome["noise"])


def test_images_decoded_meanwhile_are_noise(cell, tmp_path):
    options = cell.options.model_copy(update={"data_dir": tmp_path, "num_test": 11})
    outcome = time_search(replace(cell, options=options, num_warmups=0))
    assert outcome["search"]["work"]["images_decoded"] == 31
    assert "31 images were decoded" in "; ".join(outcome["noise"])


@pytest.mark.parametrize(
    ("detail", "stages", "num_block_reads"),
    [("end_to_end", ["total"], 0), ("rungs", ["total"], 0), ("steps", None, 0), ("step_details", None, 15)],
)
def test_a_row_tells_time_as_finely_as_asked(cell, detail, stages, num_block_reads):
    outcome = time_search(replace(cell, detail=detail))
    timings_s = outcome["search"]["timings_s"]
    assert set(timings_s) == set(stages or ["total", "plan", "load_blocks", "decode", "inference", "proxy"])
    assert len(outcome["search"].get("rungs", ())) == (0 if detail == "end_to_end" else 1)
    assert len(outcome["block_reads"]) == num_block_reads
    assert sum(read["num_bytes"] for read in outcome["block_reads"]) in (0, outcome["io"]["block_bytes"])
    assert 0 <= outcome["recording_s"] < outcome["wall_s"]


@pytest.mark.slow
def test_warm_ups_run_once_for_both_states_of_the_page_cache(cell, monkeypatch):
    calls = []
    real = timed_search.search
    monkeypatch.setattr(timed_search, "search", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs))
    own = replace(cell, options=cell.options.model_copy(update={"tolerance": 0.5}), num_warmups=2)
    for state in ("cold", "warm", "cold"):
        time_search(replace(own, cache=state))
    assert len(calls) == 2 + 3


def test_the_limit_bounds_the_rate_of_a_stores_blocks(cell):
    limit = 100.0
    outcome = time_search(replace(cell, io_limit_mib_per_s=limit))
    assert outcome["io"]["block_mib_per_s"] <= limit
    num_bytes = outcome["io"]["block_bytes"]
    assert outcome["io"]["block_read_s"] >= num_bytes / 2**20 / limit


def test_limited_reads_are_verified_all_the_same(cell):
    reads = BlockReads(ReadLimit(1e12))
    digest = Store.open(cell.store_dir).manifests()[0].blocks[0].digest
    store = Store.open(cell.store_dir, on_read=reads.record)
    store.read_block(digest)
    assert [row["digest"] for row in reads.rows] == [digest]
    assert reads.num_bytes == Folder(cell.store_dir).object_path(digest).stat().st_size


def test_time_in_which_two_blocks_are_read_at_once_counts_once(monkeypatch):
    reads, ends = BlockReads(None), iter([2.0, 2.0, 3.0, 3.0, 6.0, 6.0])
    monkeypatch.setattr(timed_search.time, "perf_counter", lambda: next(ends))
    for digest, asked_s in (("a", 0.0), ("b", 1.0), ("c", 5.0)):
        reads.record(digest, 10, asked_s)
    assert reads.read_s == 4.0
    assert [row["read_s"] for row in reads.rows] == [2.0, 2.0, 1.0]
