"""An empty store for each test of this folder."""

import pytest

from raysnap.store.store import Store


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.open(tmp_path / "store", create=True)
