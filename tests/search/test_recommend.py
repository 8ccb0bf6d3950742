"""A recommendation by records alone: no image is read, and a store without records says that it knows nothing."""

import pytest

from raysnap.errors import DataError, UsageError
from raysnap.search.recommend import recommend
from raysnap.store.store import Store
from tests.support.image_folders import make_folder
from tests.support.search_stores import put, variant
from tests.support.start_records import record


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store.open(tmp_path / "store", create=True)
    for seed, name in enumerate(("first", "second", "third")):
        put(store, name, variant("mobilenet_v3_small", seed, 0), "mobilenet_v3_small")
    return store


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "photos", {"train/cat": 2, "train/dog": 2})


def remember(store: Store, name: str, accuracy: float) -> None:
    one = record(name, "pets", accuracy)
    store.put_record(one.model_copy(update={"start": one.start.model_copy(update={"snapshot": store.refs()[name]})}))


def test_the_best_elsewhere_comes_first(store, folder):
    for name, accuracy in (("first", 0.1), ("second", 0.9)):
        remember(store, name, accuracy)
    found = recommend(store, folder)
    assert [line.name for line in found.ranking] == ["second", "third", "first"]
    assert (found.num_records, found.num_datasets, found.num_snapshots) == (2, 1, 3)
    assert [line.num_datasets for line in found.ranking] == [1, 0, 1]
    assert found.to_pandas()["name"].tolist() == ["second", "third", "first"]
    assert [line.name for line in recommend(store, folder, limit=1).ranking] == ["second"]
    assert [line.name for line in recommend(store, folder, where="name == 'first'").ranking] == ["first"]


def test_a_store_without_records_recommends_nothing(store, folder):
    found = recommend(store.path, str(folder))
    assert (found.num_records, {line.standing for line in found.ranking}) == (0, {0.5})


def test_wrong_questions_are_refused(store, folder):
    with pytest.raises(UsageError, match="limit: expected at least 1"):
        recommend(store, folder, limit=0)
    with pytest.raises(UsageError, match="expected at least one snapshot to rank"):
        recommend(store, folder, where="accuracy > 2")
    with pytest.raises(DataError, match="no folder"):
        recommend(store, folder / "missing")
