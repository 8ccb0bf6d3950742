"""The pixel cache: equal to torchvision's pixels, decoded once, never wrong after a crash or a change."""

import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.transforms.v2 import CenterCrop, Compose, Resize
from torchvision.transforms.v2.functional import pil_to_tensor

from raysnap.datasets import decoding, image_file
from raysnap.datasets import pixel_cache as pixels
from raysnap.datasets.dataset import Dataset, read_folder
from raysnap.datasets.pixel_cache import PixelCache
from raysnap.datasets.resizing import Resizing
from raysnap.errors import DataError
from tests.support.bad_images import BAD, noise_image

IS_DEEP = os.environ.get("RAYSNAP_DEEP") == "1"
FORMS = [(40, 40), (40, 57), (57, 40), (24, 33), (33, 90), (200, 61), (31, 32), (12, 12), (7, 50), (1, 1)]


def make_dataset(root: Path, forms: list[tuple[int, int]], suffix: str = "png") -> Dataset:
    for class_name in ("a", "b"):
        (root / "train" / class_name).mkdir(parents=True)
    for index, (width, height) in enumerate(forms):
        noise_image(width, height, index).save(root / "train" / "ab"[index % 2] / f"{index:03d}.{suffix}")
    return read_folder(root)


def open_cache(dataset: Dataset, resize_size: int = 32) -> PixelCache:
    return PixelCache.open(dataset.splits["train"], dataset, Resizing(resize_size))


def torchvision_pixels(dataset: Dataset, resize_size: int, crop_size: int) -> torch.Tensor:
    transform = Compose([Resize(resize_size), CenterCrop(crop_size)])
    return torch.stack(
        [
            pil_to_tensor(transform(ImageOps.exif_transpose(Image.open(item.path)).convert("RGB")))
            for item in dataset.splits["train"]
        ]
    )


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize(("resize_size", "crop_size"), [(32, 32), (32, 31), (33, 32), (33, 16), (37, 32), (64, 1)])
def test_pixels_equal_torchvision_bit_for_bit(tmp_path, suffix, resize_size, crop_size):
    dataset = make_dataset(tmp_path, FORMS, suffix)
    cache = open_cache(dataset, resize_size)
    everything = list(range(len(FORMS)))
    assert cache.load(everything) == everything
    assert torch.equal(cache.read(everything, crop_size), torchvision_pixels(dataset, resize_size, crop_size))


@settings(max_examples=300 if IS_DEEP else 40)
@given(width=st.integers(1, 90), height=st.integers(1, 90), resize_size=st.integers(1, 70), crop=st.floats(0, 1))
def test_pixels_of_any_size_equal_torchvision(width, height, resize_size, crop):
    crop_size = max(1, round(crop * resize_size))
    with TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder), [(width, height), (height, width), (width, width), (1, height)])
        found = open_cache(dataset, resize_size).read(range(4), crop_size)
        assert torch.equal(found, torchvision_pixels(dataset, resize_size, crop_size))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_images_of_every_mode_become_rgb(tmp_path, mode):
    dataset = make_dataset(tmp_path, FORMS[:4])
    path = dataset.splits["train"][0].path
    path.unlink()
    noise_image(40, 40).convert(mode).save(path, "TIFF" if mode == "CMYK" else "PNG")
    assert torch.equal(open_cache(dataset).read(range(4), 32), torchvision_pixels(dataset, 32, 32))


def test_a_photo_that_lies_on_its_side_is_turned_upright(tmp_path):
    dataset = make_dataset(tmp_path, FORMS[:4], "jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    noise_image(70, 40).save(dataset.splits["train"][1].path, exif=exif)
    found = open_cache(dataset).read(range(4), 30)
    assert torch.equal(found, torchvision_pixels(dataset, 32, 30))


def test_processes_fill_the_cache_as_threads_do(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_THREADS", 1)
    monkeypatch.setattr(decoding, "MIN_JOBS_PER_PROCESS", 1)
    monkeypatch.setattr(decoding, "num_cpus", lambda: 2)
    dataset = make_dataset(tmp_path, FORMS * 4)
    everything = range(len(FORMS) * 4)
    expected = torchvision_pixels(dataset, 32, 32)
    dataset.splits["train"][3].path.write_bytes(b"")
    cache = open_cache(dataset)
    good = cache.load(everything)
    assert good == [index for index in everything if index != 3]
    assert torch.equal(cache.read(good, 32), expected[good])
    assert cache.num_decoded == len(good)


def test_each_image_is_decoded_once_and_only_when_asked_for(tmp_path):
    dataset = make_dataset(tmp_path, FORMS)
    first = open_cache(dataset)
    assert first.num_decoded == 0
    first.load([1, 3])
    first.load([3, 1, 3])
    assert first.num_decoded == 2
    assert first.decode_s > 0
    second = open_cache(dataset)
    second.load([0, 1, 2, 3])
    assert second.num_decoded == 2
    assert torch.equal(first.read([0, 1, 2, 3], 32), torchvision_pixels(dataset, 32, 32)[:4])
    assert first.num_decoded == 2


def test_a_cache_opened_for_other_items_is_the_same_cache(tmp_path):
    dataset = make_dataset(tmp_path, FORMS)
    open_cache(dataset).load(range(len(FORMS)))
    backwards = PixelCache.open(dataset.splits["train"][::-1], dataset, Resizing(32))
    assert torch.equal(backwards.read(range(len(FORMS)), 32), torchvision_pixels(dataset, 32, 32).flip(0))
    assert backwards.num_decoded == 0


def test_a_changed_image_replaces_the_outdated_cache(tmp_path):
    dataset = make_dataset(tmp_path, FORMS)
    for resize_size in (32, 48):
        open_cache(dataset, resize_size).load([0])
    noise_image(40, 40, seed=99).save(dataset.splits["train"][0].path)
    cache = open_cache(dataset)
    assert torch.equal(cache.read([0], 32), torchvision_pixels(dataset, 32, 32)[:1])
    assert cache.num_decoded == 1
    kept = sorted(path.name.split("-")[0] for path in (tmp_path / ".raysnap" / "pixels").iterdir())
    assert kept == ["32", "48"]


def test_the_cache_is_no_part_of_the_dataset(tmp_path):
    dataset = make_dataset(tmp_path, FORMS)
    open_cache(dataset).load([0])
    assert read_folder(tmp_path) == dataset
    cache = open_cache(dataset)
    cache.load([0])
    assert cache.num_decoded == 0


def test_a_read_only_dataset_is_cached_in_the_users_folder(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path / "it", FORMS)
    (tmp_path / "it" / ".raysnap").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache = open_cache(dataset)
    assert cache.directory.is_relative_to(tmp_path / "cache" / "raysnap")
    assert torch.equal(cache.read(range(len(FORMS)), 32), torchvision_pixels(dataset, 32, 32))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "it" / ".raysnap"))
    with pytest.raises(
        DataError, match="expected a writable folder for its pixel cache, found none.*set XDG_CACHE_HOME"
    ):
        open_cache(dataset)


def test_pixels_are_on_disk_before_their_records_say_so(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path, FORMS)
    cache = open_cache(dataset)
    states = []
    monkeypatch.setattr(pixels, "sync_data", lambda file: states.append(cache._records["state"].copy()))
    cache.load(range(len(FORMS)))
    assert len(states) == 1
    assert not states[0].any()
    assert cache._records["state"].all()


def test_a_kill_before_the_records_leaves_nothing_present(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path, FORMS)

    def killed(file: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pixels, "sync_data", killed)
    with pytest.raises(KeyboardInterrupt):
        open_cache(dataset).load(range(len(FORMS)))
    monkeypatch.undo()
    cache = open_cache(dataset)
    assert torch.equal(cache.read(range(len(FORMS)), 32), torchvision_pixels(dataset, 32, 32))
    assert cache.num_decoded == len(FORMS)


def test_a_full_disk_is_an_error_that_says_so(tmp_path, monkeypatch):
    cache = open_cache(make_dataset(tmp_path, FORMS))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DataError, match="No space left on device; free space there"):
        cache.load([0])


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM], ids=errno.errorcode.get)
def test_a_limit_of_the_system_makes_no_image_bad(tmp_path, monkeypatch, code):
    cache = open_cache(make_dataset(tmp_path, FORMS))

    def at_its_limit(*_: object, **__: object) -> object:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(image_file.Image, "open", at_its_limit)
    with pytest.raises(DataError, match="pixel cache .*: (too many open files|out of memory)"):
        cache.load([0])
    assert cache.bad == {}
    monkeypatch.undo()
    assert cache.load([0]) == [0]


def test_short_writes_are_finished(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path, FORMS)
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, offset: pwrite(file, content[:100], offset))
    assert torch.equal(open_cache(dataset).read(range(len(FORMS)), 32), torchvision_pixels(dataset, 32, 32))


def test_two_writers_fill_one_cache_at_once(tmp_path):
    dataset = make_dataset(tmp_path, FORMS)
    indices = list(range(len(FORMS)))

    def fill(order: list[int]) -> None:
        cache = open_cache(dataset)
        for index in order:
            cache.load([index])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fill, (indices, indices[::-1])))
    cache = open_cache(dataset)
    assert torch.equal(cache.read(indices, 32), torchvision_pixels(dataset, 32, 32))
    assert cache.num_decoded == 0


def test_what_another_process_decodes_is_not_decoded_again(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path, FORMS * 10)
    indices = list(range(len(FORMS) * 10))
    mine, other = open_cache(dataset), open_cache(dataset)
    read_image, seen = image_file.read_image, []

    def read_after_other(path: Path) -> Image.Image:
        seen.append(path)
        if len(seen) == 1:
            other.load(indices[:50])
        return read_image(path)

    monkeypatch.setattr(decoding, "num_cpus", lambda: 1)
    monkeypatch.setattr(decoding, "read_image", read_after_other)
    assert mine.load(indices) == indices
    assert other.num_decoded == 50
    assert 50 <= mine.num_decoded <= 51 + decoding.BATCH_LENGTH
    assert torch.equal(mine.read(indices, 32), torchvision_pixels(dataset, 32, 32))


@pytest.mark.parametrize("kind", ["empty", "garbage", "cut JPEG", "bomb of 20,000 x 6,000", "named pipe"])
def test_a_bad_image_is_named_and_left_out(tmp_path, kind):
    make, reason = BAD[kind]
    dataset = make_dataset(tmp_path, FORMS)
    cache = open_cache(dataset)
    path = dataset.splits["train"][2].path
    path.unlink()
    make(path)
    assert cache.load([0, 1, 2, 3]) == [0, 1, 3]
    assert list(cache.bad) == [2]
    assert cache.bad[2].startswith(f"{path}: ")
    assert reason in cache.bad[2]
    assert cache.num_decoded == 3
    with pytest.raises(DataError, match=r"read only what load\(\) returns"):
        cache.read([2], 32)


def test_an_item_that_is_listed_twice_is_bad_twice(tmp_path):
    dataset = make_dataset(tmp_path, FORMS)
    items = dataset.splits["train"]
    items[1].path.write_bytes(b"")
    cache = PixelCache.open((*items, items[1], items[0]), dataset, Resizing(32), max_bad=0.5)
    assert cache.load([0, 1, 10, 11]) == [0, 11]
    assert cache.bad[1] == cache.bad[10]
    assert cache.num_decoded == 1


def test_an_image_too_long_and_thin_to_be_resized_is_bad(tmp_path):
    dataset = make_dataset(tmp_path, FORMS)
    Image.new("1", (4_000_000, 1)).save(dataset.splits["train"][2].path)
    cache = open_cache(dataset)
    assert cache.load([1, 2]) == [1]
    assert cache.bad[2].startswith(f"{dataset.splits['train'][2].path}: expected an aspect ratio that fits")


def test_a_file_that_went_missing_is_a_bad_image(tmp_path):
    dataset = make_dataset(tmp_path, FORMS)
    cache = open_cache(dataset)
    dataset.splits["train"][0].path.unlink()
    assert cache.load([0, 1]) == [1]
    assert "No such file" in cache.bad[0]


def test_too_many_bad_images_are_an_error_that_names_some(tmp_path):
    dataset = make_dataset(tmp_path, FORMS)
    for item in dataset.splits["train"][:5]:
        item.path.write_bytes(b"")
    cache = open_cache(dataset)
    with pytest.raises(DataError, match=r"5 of 10 images are bad, expected at most 1: .*000\.png.*\(and 2 more\)"):
        cache.load(range(len(FORMS)))
    assert cache.load([0, 7]) == [7]


@pytest.mark.parametrize(("max_bad", "num_allowed"), [(0.5, 5), (0.4, 4), (0.0, 0)])
def test_the_limit_of_bad_images_is_a_share_of_those_requested(tmp_path, max_bad, num_allowed):
    dataset = make_dataset(tmp_path, FORMS)
    for item in dataset.splits["train"][:5]:
        item.path.write_bytes(b"")
    cache = PixelCache.open(dataset.splits["train"], dataset, Resizing(32), max_bad)
    if num_allowed == 5:
        assert cache.load(range(10)) == [5, 6, 7, 8, 9]
    else:
        with pytest.raises(DataError, match=f"5 of 10 images are bad, expected at most {num_allowed}"):
            cache.load(range(10))


def test_a_limit_that_is_no_fraction_is_refused(tmp_path):
    dataset = make_dataset(tmp_path, FORMS)
    with pytest.raises(ValueError, match="max_bad: expected a fraction from 0 to 1, found 2"):
        PixelCache.open(dataset.splits["train"], dataset, Resizing(32), max_bad=2)


def test_an_odd_file_warns_nobody(tmp_path):
    dataset = make_dataset(tmp_path, FORMS)
    path = dataset.splits["train"][0].path
    noise_image(40, 40).convert("P").save(path, transparency=bytes(range(256)))
    assert open_cache(dataset).load([0]) == [0]


def test_an_item_of_another_dataset_is_refused(tmp_path):
    one, other = make_dataset(tmp_path / "one", FORMS), make_dataset(tmp_path / "other", FORMS)
    with pytest.raises(DataError, match="expected an item of"):
        PixelCache.open(one.splits["train"], other, Resizing(32))


@pytest.mark.parametrize("crop_size", [0, 33])
def test_a_crop_that_does_not_fit_is_refused(tmp_path, crop_size):
    cache = open_cache(make_dataset(tmp_path, FORMS))
    with pytest.raises(ValueError, match=f"crop_size: expected 1 to 32 .*, found {crop_size}"):
        cache.read([0], crop_size)


def test_reading_nothing_gives_nothing(tmp_path):
    cache = open_cache(make_dataset(tmp_path, FORMS))
    assert cache.load([]) == []
    assert cache.read([], 32).shape == (0, 3, 32, 32)


def test_what_the_disk_has_no_room_for_is_refused_before(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path, FORMS)
    free = shutil.disk_usage(tmp_path)._replace(free=3 * 500 * 501 * 9)
    monkeypatch.setattr(pixels.shutil, "disk_usage", lambda _: free)
    with pytest.raises(
        DataError, match=r"10\s+images of 500 px take 7\.51\s+MB, found 6\.76\s+MB free; free space there"
    ):
        open_cache(dataset, 500).load(range(10))
    assert open_cache(dataset, 500).load(range(9)) == list(range(9))


def test_a_large_cache_is_told_before(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(pixels, "LARGE_BYTES", 30_000)
    dataset = make_dataset(tmp_path, FORMS)
    open_cache(dataset).load(range(5))
    assert not caplog.records
    open_cache(dataset, 64).load(range(5))
    assert "5\N{NO-BREAK SPACE}images of 64 px take 62.4\N{NO-BREAK SPACE}kB of the disk" in caplog.text
