"""The contact sheet: what is on it, for few and many classes, good and bad files."""

import json
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from raysnap.datasets import contact_sheet
from raysnap.datasets.contact_sheet import BAD, BAD_PAPER, check_sheet_path, write_contact_sheet
from raysnap.datasets.dataset import read_folder
from raysnap.errors import DataError

COLOURS = {"train": (200, 30, 30), "val": (30, 200, 30), "test": (30, 30, 200)}


def make(root, class_names=("a", "b"), splits=("train", "val", "test"), num_images=12, extent=(40, 30)):
    for split in splits:
        for name in class_names:
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(num_images):
                Image.new("RGB", extent, COLOURS[split]).save(folder / f"{index}.png")
    return read_folder(root)


def pixels_of(path):
    with Image.open(path) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        return np.asarray(image)


def num_tiles(pixels, colour):
    return (pixels == colour).all(axis=2).sum() / contact_sheet.TILE_PX**2


@pytest.mark.parametrize(
    ("splits", "columns"),
    [(("train",), (10, 0, 0)), (("train", "test"), (7, 0, 3)), (("train", "val", "test"), (6, 2, 2))],
)
def test_every_class_has_a_row_and_every_split_its_columns(tmp_path, splits, columns):
    dataset = make(tmp_path / "it", splits=splits)
    write_contact_sheet(dataset, (), tmp_path / "sheet.png")
    pixels = pixels_of(tmp_path / "sheet.png")
    assert [num_tiles(pixels, colour) for colour in COLOURS.values()] == [2 * num for num in columns]


def test_many_classes_are_chosen_evenly_from_first_to_last(tmp_path):
    dataset = make(tmp_path / "it", [f"c{index:03}" for index in range(60)], ("train",), num_images=2)
    write_contact_sheet(dataset, (), tmp_path / "sheet.png")
    assert num_tiles(pixels_of(tmp_path / "sheet.png"), COLOURS["train"]) == 2 * 20
    chosen = contact_sheet.evenly_chosen(60, 20)
    assert (len(chosen), chosen[0], chosen[-1]) == (20, 0, 59)
    assert {later - earlier for earlier, later in pairwise(chosen)} == {3, 4}


def test_bad_files_are_marked_and_the_seed_decides_the_rest(tmp_path):
    dataset = make(tmp_path / "it", splits=("train",))
    for index, item in enumerate(dataset.splits["train"]):
        Image.new("RGB", (40, 40), (index, 99, 99)).save(item.path)
    bad = dataset.splits["train"][7].path
    bad.write_bytes(b"no image")
    sheets = {}
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        write_contact_sheet(dataset, {bad}, tmp_path / f"{name}.png", seed)
        sheets[name] = (tmp_path / f"{name}.png").read_bytes()
        pixels = pixels_of(tmp_path / f"{name}.png")
        assert 0.5 < num_tiles(pixels, BAD_PAPER) < 1 and num_tiles(pixels, BAD) > 0.02
        assert (pixels[..., 1:] == 99).all(axis=2).sum() == 19 * contact_sheet.TILE_PX**2
    assert sheets["one"] == sheets["again"] != sheets["two"]


def test_a_file_that_went_bad_meanwhile_is_marked_too(tmp_path):
    dataset = make(tmp_path / "it", splits=("train",), num_images=2)
    dataset.splits["train"][0].path.write_bytes(b"")
    write_contact_sheet(dataset, (), tmp_path / "sheet.png")
    assert num_tiles(pixels_of(tmp_path / "sheet.png"), BAD_PAPER) > 0.5


def test_thumbnails_are_the_middle_of_the_image(tmp_path):
    dataset = make(tmp_path / "it", splits=("train",), num_images=2)
    for item in dataset.splits["train"]:
        image = Image.new("RGB", (300, 100), (0, 0, 0))
        image.paste((255, 0, 255), (100, 0, 200, 100))
        image.save(item.path)
    write_contact_sheet(dataset, (), tmp_path / "sheet.png")
    assert num_tiles(pixels_of(tmp_path / "sheet.png"), (255, 0, 255)) == 4


NAMES = [
    "Rolls-Royce Phantom Drophead Coupe Convertible, the longest name of all 2012 " * 2,
    "x" * 200,
    "山地自行车",
    "a\tb",
]


def test_names_of_any_length_and_script_stay_in_their_column(tmp_path):
    names = [name[:120] for name in NAMES]
    write_contact_sheet(make(tmp_path / "it", names, ("train",), num_images=2), (), tmp_path / "sheet.png")
    pixels = pixels_of(tmp_path / "sheet.png")
    edge = contact_sheet.MARGIN_PX + contact_sheet.LABEL_PX
    assert (pixels[contact_sheet.HEADER_PX :, edge - 16 : edge] > 200).all()


@pytest.mark.parametrize(
    ("name", "written"),
    [("T-shirt/top", "T-shirt/top"), ("Żółw", "class 0: Zo·w"), ("山地", "class 0"), ("Ägypten", "Agypten")],
)
def test_a_class_has_its_original_name_where_the_font_can(tmp_path, name, written):
    dataset = make(tmp_path / "it", ("0_slug", "1_b"), ("train",), num_images=2)
    (dataset.root / "classes.json").write_text(json.dumps({"0_slug": name}))
    assert contact_sheet._class_names(dataset) == [written, "1_b"]


def test_a_names_file_that_makes_no_sense_is_passed_over(tmp_path):
    dataset = make(tmp_path / "it", ("a", "b"), ("train",), num_images=2)
    (dataset.root / "classes.json").write_text("[1")
    assert contact_sheet._class_names(dataset) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sheet.jpg", "expected a file name that ends in .png, found .jpg"),
        ("sheet", "found no suffix"),
        ("none/sheet.png", "expected an existing folder, found no .*; create it"),
        ("folder.png", "expected a file name, found a folder"),
    ],
)
def test_a_bad_place_for_a_sheet_is_refused_before_the_work(tmp_path, name, message):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match=message):
        check_sheet_path(tmp_path / name)
