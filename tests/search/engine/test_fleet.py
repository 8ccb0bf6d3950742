"""Searches by many workers: the scores and the counters of one, also when blocks are damaged or workers die."""

import os
import shutil
import signal
from collections import Counter
from dataclasses import replace

import pytest
from threadpoolctl import threadpool_limits

from raysnap.config.parts import ShapesConfig
from raysnap.datasets.dataset import open_dataset
from raysnap.errors import ClusterError, RaysnapError
from raysnap.search import search
from raysnap.search.engine import fleet
from raysnap.search.plan.costs import shape_of
from raysnap.store.store import Store
from tests.support.search_stores import one_thread, put, random_blocks, variant

SMALL = "mobilenet_v3_small"
SHAPES = ShapesConfig(image_size=32, num_train=48, num_val=24, num_test=8)
DATA = "shapes-colour-a"

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.timeout(400)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread(), threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    open_dataset(DATA, directory, SHAPES)
    return directory


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return a store of three architectures that share blocks within each."""
    store = Store.open(tmp_path_factory.mktemp("fleet") / "store", create=True)
    for name, (seed, retrain_index) in {"base": (0, 0), "one": (1, 1), "two": (2, 2), "three": (3, 3)}.items():
        put(store, f"resnet-{name}", variant("resnet18", seed, retrain_index))
        put(store, f"small-{name}", variant(SMALL, seed, retrain_index), SMALL)
    put(store, "efficientnet", random_blocks("efficientnet_b0", 0), "efficientnet_b0")
    return store


def find(store, data_dir, **arguments):
    arguments = {"precision": "float32"} | arguments
    return search(store, DATA, data_dir=data_dir, shapes=SHAPES, **arguments)


def lines(result):
    return [(one.snapshot, pytest.approx(one.score, abs=1e-5), one.num_train, one.num_test) for one in result.ranking]


def rungs_of(result):
    return [(rung.num_candidates, rung.num_kept) for rung in result.rungs]


def passes_by_rung(result):
    return [(rung.block_item_passes, rung.flops) for rung in result.rungs]


@pytest.fixture
def dealt(monkeypatch):
    """Return the tree and the partition of each rung that workers run."""
    found, deal = [], fleet.Fleet._deal

    def deal_and_note(self, *arguments):
        partition = deal(self, *arguments)
        found.append((self.tree, partition))
        return partition

    monkeypatch.setattr(fleet.Fleet, "_deal", deal_and_note)
    return found


def with_what_runs_again(alone, dealt):
    """Return what one worker passes, and what a partition runs again rather than hand it over, which is little."""
    expected = []
    for (passes, flops), (tree, partition) in zip(passes_by_rung(alone), dealt, strict=True):
        runs = Counter((node, wave) for piece in partition.pieces for node in piece.nodes for wave in piece.waves)
        for (node, wave), num_runs in runs.items():
            num_items = (num_runs - 1) * len(partition.waves[wave])
            passes, flops = passes + num_items, flops + num_items * shape_of(tree.nodes[node]).flops
        expected.append((passes, flops))
    assert all(new <= 1.05 * old for (_, new), (_, old) in zip(expected, passes_by_rung(alone), strict=True))
    return expected


def test_two_workers_answer_as_one_with_the_same_passes(store, data_dir, dealt):
    alone, two = (find(store, data_dir, method="nested", workers=workers) for workers in (1, 2))
    assert lines(two) == lines(alone)
    assert rungs_of(two) == rungs_of(alone)
    assert passes_by_rung(two) == with_what_runs_again(alone, dealt)
    assert two.work["block_bytes_read"] >= alone.work["block_bytes_read"]
    assert two.precision == "float32" and two.bound_s > 0


def test_damage_skips_the_same_candidates_on_workers(store, data_dir, tmp_path, dealt):
    copy = shutil.copytree(store.path, tmp_path / "store")
    data = shutil.copytree(data_dir, tmp_path / "data")
    damaged = store.manifest("resnet-two").blocks[7].digest
    path = copy / "objects" / damaged[:2] / damaged
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    alone = find(copy, data, method="shared")
    two = find(copy, data, method="shared", workers=2, feature_cache_bytes=2**28)
    assert [one.name for one in two.skipped] == [one.name for one in alone.skipped] == ["resnet-two"]
    assert lines(two) == lines(alone)
    assert rungs_of(two) == rungs_of(alone)
    assert passes_by_rung(two) == with_what_runs_again(alone, dealt)
    assert two.rungs[0].block_item_passes == two.work["block_item_passes"]
    again = find(copy, data, method="shared", feature_cache_bytes=2**28)
    assert lines(again) == lines(alone)
    assert again.work["block_item_passes"] == 0


@pytest.mark.slow
def test_when_a_worker_dies_the_other_goes_on(store, data_dir, monkeypatch):
    alone = find(store, data_dir, method="shared")
    gather, kills = fleet.Fleet._gather, []

    def gather_after_a_kill(self, *arguments):
        if not kills:
            kills.append(fleet.ray.get(self._workers[0].pid.remote()))
            os.kill(kills[0], signal.SIGKILL)
        return gather(self, *arguments)

    monkeypatch.setattr(fleet.Fleet, "_gather", gather_after_a_kill)
    assert lines(find(store, data_dir, method="shared", workers=2)) == lines(alone)
    assert len(kills) == 1


def test_more_workers_than_cpus_are_refused(store, data_dir):
    with pytest.raises(ClusterError, match="--workers 50 needs 50 x 1 CPU, each on one node: found room for 2 on"):
        find(store, data_dir, workers=50)


def test_a_worker_that_can_not_start_says_where_and_why(store, data_dir, monkeypatch):
    monkeypatch.setattr(fleet.Setup, "absolute", lambda setup: replace(setup, store=setup.store / "none"))
    message = r"search workers can't be started: node \S+ \(\S+\): .*none: expected a model store, found nothing there$"
    with pytest.raises(RaysnapError, match=message):
        search(store.path, DATA, data_dir=data_dir, workers=2)
