"""The items of a search: drawn once, decoded once, bad ones left out."""

import itertools
import shutil

import pytest

from raysnap.datasets.dataset import open_dataset
from raysnap.datasets.splits import probe_splits
from raysnap.errors import DataError
from raysnap.search import search
from raysnap.search.probes.proxies import PROXIES
from raysnap.store.preprocessing import Preprocessing
from raysnap.store.store import Store
from tests.support.search_stores import put, variant
from tests.support.searches import (
    DATA,
    SHAPES,
    VARIANTS,
    draw_photos,
)

pytestmark = [pytest.mark.usefixtures("single_thread"), pytest.mark.xdist_group("searches")]


def test_probes_train_on_the_items_of_probe_splits(resnets, data_dir, monkeypatch):
    seen = []
    monkeypatch.setitem(PROXIES, "linear", lambda *asked: seen.append(asked) or PROXIES["sgd_linear"](*asked))
    search(resnets, DATA, method="shared", data_dir=data_dir, num_train=24, num_test=12, seed=5, where="name == 'base'")
    train, test = probe_splits(open_dataset(DATA, data_dir), 5, 24, 12)
    (((_, train_labels, _, test_labels), seed),) = seen
    assert train_labels.tolist() == [[item.label for item in train]] and seed == 5
    assert test_labels.tolist() == [[item.label for item in test]]


def test_images_are_decoded_by_the_first_search_only(resnets, data_dir, tmp_path):
    shutil.copytree(data_dir / DATA, tmp_path / "photos", ignore=shutil.ignore_patterns(".raysnap"))
    counts = [
        search(resnets, tmp_path / "photos", method=method).work["images_decoded"] for method in ("shift", "alsatian")
    ]
    assert counts == [SHAPES.num_train + SHAPES.num_val, 0]
    more = search(resnets, tmp_path / "photos", where="name == 'base'", image_size=24)
    assert more.work["images_decoded"] == SHAPES.num_train + SHAPES.num_val, "another size is another cache"


def test_each_way_of_resizing_is_decoded_once(data_dir, tmp_path):
    """Mean, deviation and crop are applied later, so they share the decoded pixels."""
    store = Store.open(tmp_path / "store", create=True)
    ways = [
        Preprocessing(resize_size=36, image_size=32),
        Preprocessing(resize_size=36, image_size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        Preprocessing(resize_size=36, image_size=24, crop_rounding="down"),
        Preprocessing(resize_size=36, image_size=32, interpolation="bicubic"),
        Preprocessing(resize_size=32, image_size=32, interpolation="lanczos", resize_mode="squash"),
        Preprocessing(resize_size=30, image_size=32, interpolation="nearest"),
    ]
    for number, way in enumerate(ways):
        put(store, f"way-{number}", variant("resnet18", number, 1), preprocessing=way)
    shutil.copytree(data_dir / DATA, tmp_path / "photos", ignore=shutil.ignore_patterns(".raysnap"))
    result = search(store, tmp_path / "photos", method="shared", num_train=8, num_test=4)
    assert (len(result.ranking), result.skipped) == (len(ways), ())
    assert result.work["images_decoded"] == 4 * 12
    assert len(result.inputs) == len(ways)
    assert {group.resize_mode for group in result.inputs} == {"shorter_side", "squash"}


def test_few_items_still_give_a_ranking(resnets, data_dir):
    for method, num_train in itertools.product(("alsatian", "nested"), (2, 3)):
        result = search(resnets, DATA, method=method, data_dir=data_dir, num_train=num_train, num_test=3)
        assert len(result.ranking) == len(VARIANTS)
        assert all(1 <= one.num_test <= 3 for one in result.ranking)
        assert (result.ranking[0].num_train, result.ranking[0].num_test) == (num_train, 3)


def test_a_dataset_with_one_class_is_refused(resnets, tmp_path):
    with pytest.raises(DataError, match="at least 2, found 1"):
        search(resnets, draw_photos(tmp_path / "photos", {"cat": 5}))


def test_without_val_and_test_a_fifth_of_train_is_scored_on(resnets, tmp_path):
    result = search(resnets, draw_photos(tmp_path / "photos", {"cat": 11, "dog": 9}), where="name == 'base'")
    (line,) = result.ranking
    assert (line.num_train, line.num_test) == (16, 4) and result.dataset == "photos"


def test_a_bad_image_is_left_out_and_too_many_are_an_error(resnets, tmp_path):
    root = draw_photos(tmp_path / "photos", {"cat": 11, "dog": 9})
    (root / "train" / "cat" / "3.png").write_bytes(b"no image")
    (line,) = search(resnets, root, where="name == 'base'").ranking
    assert line.num_train + line.num_test == 19
    (root / "train" / "dog" / "4.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="2 of 20 images are bad"):
        search(resnets, root, where="name == 'base'")
