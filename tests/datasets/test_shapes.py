"""The drawn datasets: seeded, balanced, named after the factor that decides the class."""

import io
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from PIL import Image

from raysnap.config.parts import ShapesConfig
from raysnap.datasets import shapes
from raysnap.datasets.dataset import read_folder
from raysnap.datasets.shapes import FIGURES, TASKS, TEXTURES, draw_jpeg, draw_look, draw_task, sample_look
from raysnap.errors import DataError

TINY = ShapesConfig(image_size=24, num_train=12, num_val=4, num_test=4)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def looks(name: str, num_images: int = 200) -> list[tuple[str, shapes.Look]]:
    task = TASKS[name]
    rng = random.Random(0)
    names = list(task.classes)
    return [(names[k % len(names)], sample_look(task, names[k % len(names)], rng)) for k in range(num_images)]


def test_four_factors_have_two_tasks_each_that_share_no_class():
    assert {name.rsplit("-", 1)[0] for name in TASKS} == {
        "shapes-shape", "shapes-texture", "shapes-colour", "shapes-orientation",
    }  # fmt: skip
    for name, task in TASKS.items():
        if name.endswith("-a"):
            related = TASKS[f"{name[:-1]}b"]
            assert related.factor == task.factor
            assert not set(related.classes) & set(task.classes)


@pytest.mark.parametrize("name", TASKS)
def test_one_seed_draws_one_dataset_to_the_byte(tmp_path, name):
    for folder, seed in (("one", 0), ("same", 0), ("other", 1)):
        draw_task(name, tmp_path / folder, TINY.model_copy(update={"seed": seed}))
    one, same, other = (contents(tmp_path / folder) for folder in ("one", "same", "other"))
    assert one == same
    images = [path for path in one if path.endswith(".jpg")]
    assert len(images) == 20
    assert all(one[path] != other[path] for path in images)
    assert len({one[path] for path in images}) == 20


@pytest.mark.parametrize("name", TASKS)
def test_every_split_holds_the_classes_in_balance(tmp_path, name):
    draw_task(name, tmp_path / name, TINY)
    dataset = read_folder(tmp_path / name)
    assert dataset.classes == tuple(sorted(TASKS[name].classes))
    for split, num_each in (("train", 3), ("val", 1), ("test", 1)):
        assert Counter(item.label for item in dataset.splits[split]) == dict.fromkeys(range(4), num_each)


def test_the_record_says_how_to_draw_it_again(tmp_path):
    draw_task("shapes-shape-a", tmp_path / "it", TINY)
    record = json.loads((tmp_path / "it" / "dataset.json").read_text())
    assert ShapesConfig.model_validate(record["drawing"]) == TINY
    assert record["counts"] == {"train": 12, "val": 4, "test": 4}
    assert record["num_classes"] == 4
    listing = "".join(
        f"{path}\0{blake3(content).hexdigest()}\n"
        for path, content in contents(tmp_path / "it").items()
        if path.endswith(".jpg")
    )
    assert record["digest"] == blake3(listing.encode()).hexdigest()


@pytest.mark.parametrize("image_size", [16, 40, 65, 224])
def test_images_are_rgb_jpegs_of_the_asked_extent(image_size):
    _, content = draw_jpeg("shapes-colour-a", "train", 0, TINY.model_copy(update={"image_size": image_size}))
    image = Image.open(io.BytesIO(content))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (image_size, image_size))


@pytest.mark.parametrize("name", TASKS)
def test_only_the_named_factor_follows_the_class(name):
    factor = TASKS[name].factor
    drawn = looks(name)
    by_class = {
        class_name: [look for other, look in drawn if other == class_name] for class_name in TASKS[name].classes
    }
    for value, class_name in ((TASKS[name].classes[class_name], class_name) for class_name in by_class):
        group = by_class[class_name]
        if factor in ("shape", "texture"):
            assert {getattr(look, {"shape": "figure", "texture": "texture"}[factor]) for look in group} == {value}
        elif factor == "colour":
            assert all(min((look.hue - value) % 1, (value - look.hue) % 1) <= 0.04 for look in group)
        else:
            assert all(min((look.angle - value) % 180, (value - look.angle) % 180) <= 10 for look in group)
        if factor != "shape":
            assert {look.figure for look in group} == set(TASKS[name].figures)
        if factor != "texture":
            assert len({look.texture for look in group}) >= 6
        if factor != "colour":
            assert np.std([look.hue for look in group]) > 0.2
        if factor != "orientation":
            assert np.std([look.angle for look in group]) > 10


def test_every_figure_and_every_texture_looks_different():
    _, look = looks("shapes-shape-a", 1)[0]
    plain = replace(look, noise_level=0, angle=0.0)
    by_figure = {draw_look(replace(plain, figure=name), 32, random.Random(0)).tobytes() for name in FIGURES}
    by_texture = {draw_look(replace(plain, texture=name), 32, random.Random(0)).tobytes() for name in TEXTURES}
    assert len(by_figure) == len(FIGURES)
    assert len(by_texture) == len(TEXTURES)


@pytest.mark.parametrize("name", TASKS)
def test_every_class_can_be_recognised_from_pixels(name):
    """Same nuisances, another class: the image changes in many pixels, so that there is something to learn."""
    task = TASKS[name]
    images = []
    for class_name in task.classes:
        look = sample_look(task, class_name, random.Random(3))
        images.append(np.asarray(draw_look(look, 32, random.Random(4)), dtype=np.int64))
    for first in range(4):
        for second in range(first):
            assert (np.abs(images[first] - images[second]).max(axis=2) > 40).mean() > 0.03


def test_a_failed_drawing_leaves_nothing_behind(tmp_path, monkeypatch):
    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "draw_look", fails)
    with pytest.raises(KeyboardInterrupt):
        draw_task("shapes-shape-a", tmp_path / "data" / "it", TINY)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_drawing_that_is_there_already_stays(tmp_path):
    draw_task("shapes-shape-a", tmp_path / "it", TINY)
    before = contents(tmp_path / "it")
    draw_task("shapes-shape-a", tmp_path / "it", TINY.model_copy(update={"seed": 5}))
    assert contents(tmp_path / "it") == before
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_a_place_that_cant_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/it: can't be written: .*choose another data_dir"):
        draw_task("shapes-shape-a", tmp_path / "file" / "it", TINY)


def test_too_few_training_images_are_refused_before_drawing(tmp_path):
    with pytest.raises(DataError, match=r"shapes\.num_train: expected at least 8, two per class .*, found 7"):
        draw_task("shapes-shape-a", tmp_path / "it", TINY.model_copy(update={"num_train": 7}))
    assert list(tmp_path.iterdir()) == []
