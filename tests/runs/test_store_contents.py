"""What stores hold of a run: shared blocks and the bytes that saves."""

from raysnap.runs.run import read_run
from raysnap.runs.store_contents import StoreContents, StoredSnapshot, read_store_contents
from raysnap.store.store import Store
from tests.support.report_runs import put_tree, trial, write_run


def snapshot(name: str, *blocks: tuple[str, int]) -> StoredSnapshot:
    named = tuple((f"block{index}", digest, num_bytes) for index, (digest, num_bytes) in enumerate(blocks))
    return StoredSnapshot(name, name, "resnet18", None, None, 4, named)


def test_bytes_are_split_into_own_shared_and_copied():
    contents = StoreContents(None, (snapshot("a", ("s", 10), ("x", 1)), snapshot("b", ("s", 10), ("y", 2))))
    assert contents.split_bytes() == (3, 10, 20)


def test_the_saved_share_is_of_the_bytes_of_copies():
    assert StoreContents(None, bytes_on_disk=25, bytes_if_copied=100).saved_share == 0.75
    assert StoreContents(None).saved_share is None


def test_snapshots_go_by_the_names_of_their_trials(tmp_path):
    trials = put_tree(Store.open(tmp_path / "store", create=True), 3)
    run = read_run(write_run(tmp_path / "run", trials, store=str(tmp_path / "store")))
    (contents,) = read_store_contents(run)
    assert {held.name for held in contents.snapshots} == {row["trial"] for row in trials}
    assert contents.num_in_store == 3


def test_a_run_that_names_no_store_says_so(tmp_path):
    (contents,) = read_store_contents(read_run(write_run(tmp_path / "run", [trial(1)], store=None)))
    assert contents.store_dir is None
    assert contents.problem.startswith("The run's configuration names no store")
