"""The feature cache: what was computed is not computed again, whatever happened to the disk in between."""

import shutil

import pytest

from raysnap.config.parts import ShapesConfig
from raysnap.datasets.dataset import open_dataset
from raysnap.models.block_facts import block_shapes
from raysnap.search import search
from raysnap.store.store import Store
from tests.support.search_stores import one_thread, put, random_blocks, variant

SMALL = "mobilenet_v3_small"
SHAPES = ShapesConfig(image_size=32, num_train=48, num_val=24, num_test=8)
NUM_ITEMS = SHAPES.num_train + SHAPES.num_val
DATA = "shapes-colour-a"
ROOMY = 2**28
NOTHING = {"block_item_passes": 0, "flops": 0, "block_bytes_read": 0, "images_decoded": 0}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Return a folder with a drawn dataset, its pixels decoded."""
    directory = tmp_path_factory.mktemp("data")
    store = Store.open(tmp_path_factory.mktemp("any") / "store", create=True)
    put(store, "any", random_blocks(SMALL, 0), SMALL)
    open_dataset(DATA, directory, SHAPES)
    search(store, DATA, data_dir=directory, shapes=SHAPES)
    return directory


@pytest.fixture
def data_dir(drawn, tmp_path):
    """Return a copy of it without cached features, whose pixels are decoded again only where files' times count."""
    shutil.copytree(drawn, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def store(tmp_path):
    """Return a store of a base and two variants."""
    store = Store.open(tmp_path / "store", create=True)
    for name, (seed, retrain_index) in {"base": (0, 0), "one": (1, 1), "three": (2, 3)}.items():
        put(store, name, variant(SMALL, seed, retrain_index), SMALL)
    return store


def find(store, data_dir, **arguments):
    arguments = {"method": "shared", "feature_cache_bytes": ROOMY} | arguments
    return search(store, DATA, data_dir=data_dir, shapes=SHAPES, **arguments)


def lines(result):
    return [(one.snapshot, one.score, one.num_train, one.num_test, one.tied_with_best) for one in result.ranking]


def cache_files(data_dir):
    return sorted((data_dir / DATA / ".raysnap" / "features").glob("*"))


@pytest.mark.parametrize("method", ["shared", "nested", "shift"])
def test_repeating_a_search_runs_and_reads_nothing(store, data_dir, method):
    first = find(store, data_dir, method=method)
    again = find(store, data_dir, method=method)
    assert lines(again) == lines(first) == lines(find(store, data_dir, method=method, feature_cache_bytes=0))
    assert first.work["block_item_passes"] > 0
    assert again.work == NOTHING


@pytest.mark.parametrize("retrain_index", [0, 1, 2, 3, 5])
def test_one_more_snapshot_costs_its_own_blocks(store, data_dir, retrain_index):
    find(store, data_dir)
    put(store, "new", variant(SMALL, 9, retrain_index), SMALL)
    result = find(store, data_dir)
    shapes = block_shapes(SMALL, 32)[:-1]
    own = shapes[len(shapes) - retrain_index :]
    assert result.work["block_item_passes"] == retrain_index * NUM_ITEMS
    assert result.work["flops"] == NUM_ITEMS * sum(shape.flops for shape in own)
    entries = store.manifest("new").blocks[:-1][len(shapes) - retrain_index :]
    assert result.work["block_bytes_read"] == sum(entry.num_bytes for entry in entries)
    assert lines(result) == lines(find(store, data_dir, feature_cache_bytes=0))


def test_items_count_by_their_pixels_not_by_their_places(store, data_dir):
    find(store, data_dir, num_train=24, num_test=12)
    more = find(store, data_dir)
    alone = find(store, data_dir, feature_cache_bytes=0)
    assert lines(more) == lines(alone)
    assert more.work["block_item_passes"] * NUM_ITEMS == alone.work["block_item_passes"] * (NUM_ITEMS - 36)
    assert find(store, data_dir, seed=3, num_train=8).work["block_item_passes"] == 0


def test_other_preprocessing_or_precision_is_another_question(store, data_dir):
    find(store, data_dir)
    for arguments in ({"image_size": 24}, {"precision": "float32"}, {"precision": "bfloat16"}):
        find(store, data_dir, **arguments)
    assert find(store, data_dir).work == NOTHING
    assert find(store, data_dir, image_size=24).work == NOTHING
    assert find(store, data_dir, image_size=28).work["block_item_passes"] > 0


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_what_was_damaged_is_computed_again(store, data_dir, damage):
    first = find(store, data_dir)
    for path in cache_files(data_dir):
        content = bytearray(path.read_bytes())
        if damage == "flip":
            content[len(content) // 3] ^= 4
        cut = {"cut": len(content) // 2, "empty": 0}.get(damage, len(content))
        path.write_bytes(content[:cut])
        if damage == "gone":
            path.unlink()
    again = find(store, data_dir)
    assert lines(again) == lines(first)
    assert 0 < again.work["block_item_passes"] <= first.work["block_item_passes"]
    find(store, data_dir)  # what stood beside damage was still used, and went with it
    assert find(store, data_dir).work == NOTHING


@pytest.mark.parametrize("budget_bytes", [1, 60_000, 400_000])
def test_the_cache_keeps_to_its_budget(store, data_dir, budget_bytes):
    for _ in range(2):
        result = find(store, data_dir, feature_cache_bytes=budget_bytes)
        assert sum(path.stat().st_size for path in cache_files(data_dir)) <= budget_bytes
    assert lines(result) == lines(find(store, data_dir, feature_cache_bytes=0))


def test_without_a_cache_none_is_read_or_made(store, data_dir):
    find(store, data_dir, feature_cache_bytes=0)
    assert not cache_files(data_dir)


def test_a_disk_that_is_full_costs_no_answer(store, data_dir, monkeypatch):
    def refuse(self, cache):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("raysnap.search.engine.feature_cache.Segment.__init__", refuse)
    assert lines(find(store, data_dir)) == lines(find(store, data_dir, feature_cache_bytes=0))


def test_nothing_half_made_is_left(store, data_dir, monkeypatch):
    def interrupt(self, items):
        raise KeyboardInterrupt

    monkeypatch.setattr("raysnap.search.engine.feature_cache.Segment.publish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        find(store, data_dir)
    assert not cache_files(data_dir)
