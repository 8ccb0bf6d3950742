"""Names and ids of snapshots: found by name, id or prefix, moved only by compare-and-swap."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from raysnap.errors import SnapshotNotFound, StoreError, UsageError
from raysnap.store.catalog import ref_key
from raysnap.store.store import Store
from raysnap.testing.blocks import put


def test_a_snapshot_is_found_by_name_id_and_prefix(store):
    manifest = put(store, name="mine").manifest
    for name in ("mine", manifest.id, manifest.id[:6], manifest.id[:63]):
        assert store.manifest(name) == manifest
    assert store.refs() == {"mine": manifest.id}
    assert store.names_of(manifest.id) == ["mine"]


@pytest.mark.parametrize("name", ["minee", "", "..", "../store", "a/b", "0" * 64, "0" * 6, "x" * 5000, "ä\n"])
def test_an_unknown_name_is_not_found(store, name):
    put(store, name="mine")
    with pytest.raises(SnapshotNotFound):
        store.manifest(name)


def test_a_name_that_is_nearly_right_gets_a_hint(store):
    put(store, name="resnet18-birds")
    with pytest.raises(SnapshotNotFound, match="did you mean 'resnet18-birds'"):
        store.manifest("resnet18-bird")


def test_the_prefix_of_several_ids_is_rejected(store, monkeypatch):
    ids = [put(store, seed=seed).manifest.id for seed in range(2)]
    common = "abcdef" + "0" * 50
    for index, snapshot in enumerate(ids):
        path = store.path / "snapshots" / f"{snapshot}.json"
        path.rename(path.with_name(f"{common}{index:08d}.json"))
    with pytest.raises(SnapshotNotFound, match="prefix of 2 ids"):
        store.resolve("abcdef")


def test_a_name_moves_only_from_what_is_expected(store):
    one, two = (put(store, seed=seed).manifest.id for seed in range(2))
    store.set_ref("best", one, expected="")
    with pytest.raises(StoreError, match="nothing is changed"):
        store.set_ref("best", two, expected="")
    with pytest.raises(StoreError, match="nothing is changed"):
        store.set_ref("best", two, expected=two)
    assert store.resolve("best") == one
    store.set_ref("best", two, expected=one)
    assert store.resolve("best") == two


def test_only_a_stored_snapshot_can_be_named(store):
    with pytest.raises(SnapshotNotFound):
        store.set_ref("best", "0" * 64)
    assert store.refs() == {}


def test_a_name_that_is_a_path_is_rejected(store):
    snapshot = put(store).manifest.id
    with pytest.raises(UsageError):
        store.set_ref("../best", snapshot)
    with pytest.raises(UsageError):
        ref_key("../best")
    assert store.refs() == {}


def _count_up(path: str, ids: list[str], num_moves: int) -> int:
    """Move the name to the next id as often as asked, each time from what was read."""
    store = Store.open(path)
    num_lost = 0
    while num_moves:
        current = store.resolve("counter")
        try:
            store.set_ref("counter", ids[(ids.index(current) + 1) % len(ids)], expected=current)
            num_moves -= 1
        except StoreError:
            num_lost += 1
    return num_lost


def test_no_move_of_a_name_is_lost_between_threads(store):
    ids = [put(store, seed=seed).manifest.id for seed in range(37)]
    store.set_ref("counter", ids[0])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: _count_up(str(store.path), ids, 8), range(4)))
    assert store.resolve("counter") == ids[32]


def test_a_removed_snapshot_is_gone_with_its_names(store):
    put(store, seed=1, name="other")
    snapshot = put(store, name="mine").manifest.id
    store.set_ref("alias", snapshot)
    store.remove_snapshot("mine")
    assert list(store.refs()) == ["other"]
    assert len(store.manifests()) == 1
    with pytest.raises(SnapshotNotFound):
        store.manifest(snapshot)
    assert store.verify()["ok"]


def test_a_given_name_is_never_taken_from_a_snapshot(store):
    one, two, three = (put(store, seed=seed).manifest.id for seed in range(3))
    assert [store.give_name("mine", snapshot) for snapshot in (one, two, three)] == ["mine", "mine-2", "mine-3"]
    assert [store.give_name("mine", snapshot) for snapshot in (three, one, two)] == ["mine-3", "mine", "mine-2"]
    store.remove_ref("mine-2")
    assert store.give_name("mine", three) == "mine-2"


def test_a_name_without_a_snapshot_is_given_away(store):
    one, two = (put(store, seed=seed).manifest.id for seed in range(2))
    store.give_name("mine", one)
    (store.path / "snapshots" / f"{one}.json").unlink()
    assert store.give_name("mine", two) == "mine"
    with pytest.raises(SnapshotNotFound):
        store.give_name("mine", one)
    with pytest.raises(UsageError):
        store.give_name("../mine", two)


def test_one_name_asked_for_at_once_goes_to_one(store):
    snapshots = [put(store, seed=seed).manifest.id for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda snapshot: Store.open(store.path).give_name("mine", snapshot), snapshots))
    assert store.refs() == dict(sorted(zip(names, snapshots, strict=True)))
    assert len(set(names)) == 8
