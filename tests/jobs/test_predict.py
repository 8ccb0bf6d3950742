"""A stored model put to use: its transform is torchvision's, its predictions are its own, bad images are named."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score
from torchvision.transforms import v2

from raysnap.datasets.dataset import open_dataset
from raysnap.errors import DataError, UsageError
from raysnap.jobs.predict import evaluate, predict, transform_of
from raysnap.store.manifest import DatasetRecord
from raysnap.store.store import Store
from tests.support.image_folders import make_folder
from tests.support.search_stores import PREPROCESSING, put, variant

CLASSES = ("bird", "cat", "dog", "fish")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    store = Store.open(tmp_path_factory.mktemp("predict") / "store", create=True)
    small = variant("mobilenet_v3_small", 0, 0)
    put(store, "model", small, "mobilenet_v3_small", dataset=DatasetRecord(name="pets", classes=CLASSES))
    put(store, "nameless", variant("mobilenet_v3_small", 1, 0), "mobilenet_v3_small")
    return store


@pytest.fixture
def pets(tmp_path):
    counts = {f"{split}/{name}": 3 for split in ("train", "test") for name in ("cat", "dog")}
    return make_folder(tmp_path / "pets", counts)


@pytest.mark.parametrize("size", [(50, 41), (41, 50), (32, 32), (7, 90)])
def test_the_transform_is_torchvisions(size):
    pixels = np.random.default_rng(0).integers(256, size=(*size, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    theirs = v2.Compose(
        [
            v2.Resize(36),
            v2.CenterCrop(32),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(PREPROCESSING.mean, PREPROCESSING.std),
        ]
    )
    torch.testing.assert_close(transform_of(PREPROCESSING)(image), theirs(image))


def test_probabilities_are_the_models_own(store, pets):
    found = predict(store, "model", pets / "test")
    model, transform = store.load_model("model"), transform_of(store.manifest("model"))
    with torch.inference_mode():
        expected = model(torch.stack([transform(file) for file in found.files])).softmax(dim=1).numpy()
    assert found.probabilities_NC == pytest.approx(expected, abs=1e-6)
    assert len(found.files) == 6 and found.classes == CLASSES and set(found.labels) <= set(CLASSES)


def test_the_csv_has_a_line_per_image(store, pets):
    found = predict(store, "nameless", pets / "test")
    head, *lines = csv.reader(found.to_csv(pets / "test").splitlines())
    assert head == ["file", "class", *(f"probability of {number}" for number in range(4))]
    assert [line[0] for line in lines] == [f"{name}/{n:03d}.png" for name in ("cat", "dog") for n in range(3)]
    assert all(sum(map(float, line[2:])) == pytest.approx(1, abs=1e-5) for line in lines)


def test_bad_images_are_named_and_left_out(store, pets):
    (pets / "test" / "cat" / "000.png").write_bytes(b"no image")
    found = predict(store, "model", pets / "test")
    assert len(found.files) == 5 and len(found.bad) == 1 and "000.png" in found.bad[0]
    with pytest.raises(DataError, match="expected images that can be read, found none of 1"):
        predict(store, "model", pets / "test" / "cat" / "000.png")
    with pytest.raises(DataError, match="expected images"):
        predict(store, "model", (pets / "empty").absolute())


def test_metrics_match_the_models_classes_by_name(store, pets):
    found, metrics = evaluate(store, "model", open_dataset(str(pets), "data"))
    truth = [file.parent.name for file in found.files]
    assert metrics["accuracy"] == pytest.approx(np.mean([a == b for a, b in zip(found.labels, truth, strict=True)]))
    assert metrics["macro_f1"] == pytest.approx(f1_score(truth, found.labels, average="macro"))
    assert metrics["top5_accuracy"] == 1.0
    with pytest.raises(UsageError, match="expected only classes of the model"):
        evaluate(store, "nameless", open_dataset(str(pets), "data"))
    with pytest.raises(DataError, match="expected a val split"):
        evaluate(store, "model", open_dataset(str(pets), "data"), "val")
