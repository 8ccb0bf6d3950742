"""Stores and searches that several modules of tests read; equal searches run once."""

import pytest

from raysnap.datasets.dataset import open_dataset
from raysnap.search import search
from raysnap.store.preprocessing import Preprocessing
from raysnap.store.store import Store
from tests.support.search_stores import one_thread, put, random_blocks, variant
from tests.support.searches import DATA, SHAPES, SMALL, VARIANTS


@pytest.fixture(scope="module")
def single_thread():
    with one_thread():
        yield


@pytest.fixture(scope="package")
def data_dir(tmp_path_factory):
    """Return a folder with one drawn dataset, its pixels decoded."""
    directory = tmp_path_factory.mktemp("data")
    open_dataset(DATA, directory, SHAPES)
    return directory


@pytest.fixture(scope="package")
def resnets(tmp_path_factory):
    """Return a store of a ResNet-18, and of variants whose last blocks are others."""
    store = Store.open(tmp_path_factory.mktemp("resnets") / "store", create=True)
    for name, (seed, retrain_index) in VARIANTS.items():
        put(store, name, variant("resnet18", seed, retrain_index))
    return store


@pytest.fixture(scope="package")
def mixed(tmp_path_factory):
    """Return a store of two architectures, of which one snapshot was trained at another image size."""
    store = Store.open(tmp_path_factory.mktemp("mixed") / "store", create=True)
    for name, (seed, retrain_index) in VARIANTS.items():
        put(store, f"small-{name}", variant(SMALL, seed, retrain_index), SMALL)
    large = Preprocessing(resize_size=36, image_size=36)
    put(store, "small-at-36", variant(SMALL, 9, 2), SMALL, preprocessing=large)
    put(store, "resnet", random_blocks("resnet18", 0))
    return store


@pytest.fixture(scope="package")
def find(data_dir):
    """Return a search of the drawn dataset; equal searches run once."""
    found = {}

    def run(store, **arguments):
        arguments = {"proxy": "linear"} | arguments
        key = (store.path, *sorted(arguments.items()))
        if key not in found:
            found[key] = search(store, DATA, data_dir=data_dir, shapes=SHAPES, **arguments)
        return found[key]

    return run
