"""What removing snapshots frees, and who holds which bytes, against the files themselves."""

import itertools

import pytest

from raysnap.errors import SnapshotNotFound
from raysnap.store.backends.folder import Folder
from raysnap.store.manifest import DatasetRecord
from raysnap.store.usage import measure_usage
from raysnap.testing.blocks import put


def object_bytes(store) -> int:
    return sum(path.stat().st_size for path in (store.path / "objects").rglob("*") if path.is_file())


@pytest.fixture
def family(store):
    """Return a store of a base, two fine-tunes of it that share two blocks and one, and a stranger."""
    base = put(store, seed=0, name="base").manifest.id
    birds, cars = DatasetRecord(name="birds"), DatasetRecord(name="cars")
    head = put(store, seed=1, num_retrained=1, name="head", base="base", dataset=birds).manifest.id
    two = put(store, seed=2, num_retrained=2, name="two", base="head", dataset=cars).manifest.id
    stranger = put(store, seed=3, name="stranger").manifest.id
    return store, [base, head, two, stranger]


@pytest.mark.parametrize("count", range(5))
def test_what_is_said_to_be_freed_is_what_gc_deletes(family, count):
    store, snapshots = family
    for going in itertools.combinations(snapshots, count):
        freed = store.freed_by(going)
        expected = {b.digest for s in going for b in store.manifest(s).blocks}
        expected -= {b.digest for s in set(snapshots) - set(going) for b in store.manifest(s).blocks}
        assert freed.num_blocks == len(expected)
    before = object_bytes(store)
    store.remove_snapshots(going)
    deleted = store.gc(grace_s=0)
    assert (deleted["num_blocks_deleted"], deleted["deleted_bytes"]) == (freed.num_blocks, freed.num_bytes)
    assert object_bytes(store) == before - freed.num_bytes
    assert store.verify()["ok"] and len(store.summaries()) == 4 - count


def test_removing_takes_names_along_and_leaves_others(family):
    store, (base, head, *_) = family
    store.set_ref("second-name", head)
    store.remove_snapshots([head])
    assert sorted(store.refs()) == ["base", "stranger", "two"]
    assert store.resolve("base") == base
    with pytest.raises(SnapshotNotFound):
        store.manifest(head)


@pytest.mark.parametrize(
    ("by", "counts"),
    [
        ("lineage", {"base": 3, "stranger": 1}),
        ("dataset", {"birds": 1, "cars": 1, "unknown": 2}),
        ("architecture", {"resnet18": 4}),
        ("age", {"less than a day": 4}),
    ],
)
def test_each_group_holds_its_blocks_and_frees_its_own(family, by, counts):
    store, _ = family
    usage = store.usage(by)
    assert {group.group: group.num_snapshots for group in usage.groups} == counts
    assert usage.block_bytes == object_bytes(store) and usage.unreached_bytes == 0
    groups = {"lineage": ("base", "stranger"), "dataset": ("birds", "cars", "unknown")}.get(by, (*counts,))
    for name in groups:
        (group,) = (one for one in usage.groups if one.group == name)
        members = {one.id for one in store.summaries() if by != "dataset" or (one.dataset or "unknown") == name}
        members -= {store.resolve("stranger")} if name == "base" else set()
        members &= {store.resolve("stranger")} if name == "stranger" else members
        assert group.own_bytes == store.freed_by(members).num_bytes <= group.held_bytes


def test_blocks_that_nothing_needs_are_told(family):
    store, (*_, stranger) = family
    freed = store.freed_by([stranger])
    store.remove_snapshots([stranger])
    assert store.usage().unreached_bytes == freed.num_bytes


def test_a_lineage_that_runs_in_a_circle_ends(family):
    store, (base, head, two, stranger) = family
    bases = {base: two, head: base, two: head, stranger: head}  # written by hand: no writer of ours can
    summaries = [one._replace(base=bases[one.id]) for one in store.summaries()]
    usage = measure_usage(Folder(store.path), summaries, "lineage")
    assert sum(group.num_snapshots for group in usage.groups) == 4
