"""The full look at one dataset: what is bad, what is there twice, and the facts people ask for."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raysnap.cli.dataset_tables import check_failures, check_table, class_counts_table
from raysnap.datasets.dataset import read_folder
from raysnap.datasets.image_folder import RECORD_NAME
from raysnap.datasets.inspection import check_dataset

CAT, DOG, VAL_CAT, TEST_DOG = "train/cat", "train/dog", "val/cat", "test/dog"


def picture(seed, width=80, height=70, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def root(tmp_path):
    """Two classes in three splits, four images in each, all different."""
    seed = 0
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for index in range(4):
                picture(seed := seed + 1).save(folder / f"{index}.png")
    return tmp_path / "pets"


def check(root):
    return check_dataset(read_folder(root))


def relative(root, groups):
    return [(group.equal, tuple(str(path.relative_to(root)) for path in group.paths)) for group in groups]


def shown(table, capsys, width=100):
    from rich.console import Console

    Console(width=width, highlight=False).print(table)
    return " ".join(capsys.readouterr().out.split())


def test_a_sound_dataset_is_counted_and_measured(root):
    result = check(root)
    assert result.is_sound
    assert result.counts == {split: {"cat": 4, "dog": 4} for split in ("train", "val", "test")}
    assert result.num_images == 24 and result.left_out == ()
    assert result.formats == {"PNG": 24} and result.modes == {"RGB": 24}
    assert (result.width_px.min, result.width_px.median, result.height_px.max) == (80, 80, 70)
    assert not (result.leaks or result.label_conflicts or result.copies or result.bad)


def test_a_sound_dataset_has_a_short_table(root, capsys):
    result = check(root)
    assert check_failures(result) == []
    out = shown(check_table(result), capsys)
    assert "24 of 24: 24 PNG" in out and "duplicates none" in out
    assert not any(word in out for word in ("small", "EXIF", "ImageNet", "dataset.json"))


def test_bad_files_and_strays_are_named_with_reasons(root):
    (root / CAT / "0.png").write_bytes(b"")
    (root / DOG / "1.png").write_bytes(b"no image")
    whole = (root / "val" / "dog" / "2.png").read_bytes()
    (root / "val" / "dog" / "2.png").write_bytes(whole[: len(whole) // 2])
    (root / CAT / "notes.txt").touch()
    result = check(root)
    assert not result.is_sound
    assert [str(one.path.relative_to(root)) for one in result.bad] == [
        "train/cat/0.png", "train/dog/1.png", "val/dog/2.png",
    ]  # fmt: skip
    assert ["an empty file" in result.bad[0].reason, "an unknown file format" in result.bad[1].reason] == [True, True]
    assert [one.path for one in result.left_out] == ["train/cat/notes.txt"] and result.num_images == 24
    assert result.formats == {"PNG": 21}
    assert [row["error"] for row in check_failures(result)] == [one.reason for one in result.bad]


def test_bad_files_of_equal_bytes_are_no_leak(root):
    for place in (CAT, VAL_CAT):
        (root / place / "0.png").write_bytes(b"the same")
    result = check(root)
    assert len(result.bad) == 2 and not result.leaks


COPIES = [
    ([CAT, VAL_CAT], "leaks"),
    ([CAT, TEST_DOG], "leaks"),
    ([VAL_CAT, TEST_DOG], "leaks"),
    ([CAT, CAT, VAL_CAT], "leaks"),
    ([CAT, DOG], "label_conflicts"),
    ([CAT, CAT, DOG], "label_conflicts"),
    ([CAT, CAT], "copies"),
    ([VAL_CAT, VAL_CAT, VAL_CAT], "copies"),
]


@pytest.mark.parametrize("is_encoded_anew", [False, True])
@pytest.mark.parametrize(("places", "kind"), COPIES)
def test_a_duplicate_is_reported_by_what_it_spoils(root, places, kind, is_encoded_anew):
    names = [f"{place}/copy{index}.png" for index, place in enumerate(places)]
    for index, name in enumerate(names):
        picture(99).save(root / name, compress_level=1 + index if is_encoded_anew else 6)
    result = check(root)
    assert {one: len(getattr(result, one)) for one in ("leaks", "label_conflicts", "copies")} == {
        one: int(one == kind) for one in ("leaks", "label_conflicts", "copies")
    }
    assert relative(root, getattr(result, kind)) == [("pixels" if is_encoded_anew else "bytes", tuple(names))]
    assert result.is_sound == (kind != "leaks")
    errors = [row["error"] for row in check_failures(result)]
    assert len(errors) == (kind != "copies")
    assert all(names[0] in one for one in errors)


def test_equal_pixels_in_another_shape_are_another_picture(root):
    pixels = picture(99, 80, 60)
    pixels.save(root / CAT / "a.png")
    Image.frombytes("RGB", (60, 80), pixels.tobytes()).save(root / VAL_CAT / "b.png")
    pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / VAL_CAT / "c.png")
    assert check(root).is_sound


def test_large_pictures_are_compared_to_their_last_row(root, monkeypatch):
    monkeypatch.setattr("raysnap.datasets.inspection.PIXELS_AT_ONCE", 100)
    pixels = np.asarray(picture(99, 8, 600)).copy()
    Image.fromarray(pixels).save(root / CAT / "a.png")
    pixels[-1, -1] ^= 1
    Image.fromarray(pixels).save(root / VAL_CAT / "b.png")
    assert check(root).is_sound


def test_modes_formats_small_and_turned_images_are_counted(root, capsys):
    picture(1, mode="L").save(root / CAT / "gray.png")
    picture(2, mode="CMYK").save(root / CAT / "cmyk.jpg")
    picture(3, mode="RGBA").save(root / CAT / "rgba.png")
    picture(7).save(root / CAT / "it.webp")
    picture(4, 63, 500).save(root / CAT / "small.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(5).save(root / CAT / "turned.jpg", exif=exif)
    picture(6).save(root / CAT / "turned.png", exif=exif)
    shutil.copy(root / CAT / "turned.png", root / CAT / "0.jpg")
    picture(6).save(root / CAT / "upright.png")
    result = check(root)
    assert result.modes == {"RGB": 30, "L": 1, "CMYK": 1, "RGBA": 1}
    assert result.formats == {"PNG": 30, "JPEG": 2, "WEBP": 1}
    assert (result.num_rotated, result.num_small) == (3, 1)
    assert (result.width_px.min, result.height_px.max) == (63, 500)
    out = shown(check_table(result), capsys)
    assert "1 image with a side under 64 px" in out and "3 images; read upright" in out and "63 to 80 px" in out


def test_files_named_as_images_of_imagenet_are_counted(root, capsys):
    (root / CAT / "0.png").rename(root / CAT / "n02085620_7.JPEG")
    (root / CAT / "1.png").rename(root / CAT / "n02085620_10131.jpg")
    (root / VAL_CAT / "0.png").rename(root / VAL_CAT / "ILSVRC2012_val_00000293.JPEG")
    (root / VAL_CAT / "1.png").rename(root / VAL_CAT / "ILSVRC2012_val_293.JPEG")
    result = check(root)
    assert (result.num_imagenet_train_names, result.num_imagenet_held_out_names) == (2, 1)
    assert result.overlap is None
    assert "2 of 24 files named like ImageNet training images; 1 of 24" in shown(check_table(result), capsys)


@pytest.mark.parametrize("by", ["record", "its name in the record", "folder"])
def test_a_dataset_that_is_known_to_overlap_says_so(root, capsys, by):
    if by == "folder":
        root = root.rename(root.with_name("stanford-dogs"))
    else:
        record = {"overlap": "all images are ImageNet training images"} if by == "record" else {"name": "stanford-dogs"}
        (root / RECORD_NAME).write_text(json.dumps(record))
    result = check(root)
    assert result.overlap == "all images are ImageNet training images"
    assert f"{result.overlap}; no file is named like an image of ImageNet" in shown(check_table(result), capsys)


def test_a_folder_that_changed_since_it_was_prepared_is_noticed(root, capsys):
    (root / RECORD_NAME).write_text(json.dumps({"counts": {"train": 8, "val": 8, "test": 8}}))
    assert check(root).recorded_counts is None
    (root / CAT / "0.png").unlink()
    result = check(root)
    assert result.recorded_counts == {"train": 8, "val": 8, "test": 8} and result.is_sound
    assert "records train/val/test 8/8/8; files have changed since" in shown(check_table(result), capsys)


def test_few_classes_are_listed_and_many_summed_by_split(root, capsys):
    assert "dog 4 4 4" in shown(class_counts_table(check(root).counts), capsys)
    counts = {"train": {f"c{index:02}": 10 + index for index in range(30)}, "test": {f"c{i:02}": 5 for i in range(30)}}
    out = shown(class_counts_table(counts), capsys)
    assert "train 735 10 24.5 39 c00 10, c01 11, c02 12" in out
    assert "test 150 5 5 5 c00 5" in out


def test_very_many_faults_are_cut_short_and_the_rest_is_counted(root):
    for index in range(30):
        (root / CAT / f"bad{index}.png").write_bytes(b"x")
    rows = check_failures(check(root))
    assert len(rows) == 21
    assert rows[-1]["error"] == "and 10 more; --json lists all"


def test_progress_is_reported_to_the_end_and_seldom(root, monkeypatch):
    monkeypatch.setattr("raysnap.datasets.inspection.IMAGES_AT_ONCE", 1)
    calls = []
    check_dataset(read_folder(root), lambda *facts: calls.append(facts))
    assert calls[-1] == ("Check", 24, 24, "") and len(calls) <= 20
    assert [done for _, done, _, _ in calls] == sorted({done for _, done, _, _ in calls})


def test_the_result_is_plain_for_json(root):
    picture(99).save(root / CAT / "copy.png")
    picture(99).save(root / VAL_CAT / "copy.png")
    document = json.loads(json.dumps(check(root).to_dict(), default=str))
    assert document["ok"] is False and document["num_images"] == 26
    assert [Path(path).name for path in document["leaks"][0]["paths"]] == ["copy.png", "copy.png"]
    assert document["width_px"] == {"min": 80, "median": 80, "max": 80}


def test_a_file_that_may_not_be_read_is_bad(root):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (root / CAT / "0.png").chmod(0)
    assert "Permission denied" in check(root).bad[0].reason
