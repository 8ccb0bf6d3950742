"""Frozen means free: outputs of frozen blocks are computed once, shared, bounded, and never wrong ones."""

import errno
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torchvision.models.vision_transformer import EncoderBlock

from raysnap.datasets import disk_cache
from raysnap.errors import FrozenBlockChanged
from raysnap.models.numerics import Numerics
from raysnap.store.preprocessing import Preprocessing
from raysnap.training import prefix_cache as prefixes
from raysnap.training.feeds import FrozenPrefix, LabelledItems, View
from raysnap.training.prefix_cache import PrefixCache, prefix_place
from raysnap.training.prefix_plan import CHUNK_ITEMS

PREPROCESSING = Preprocessing(resize_size=10, image_size=8)
ON_CPU = Numerics(torch.device("cpu"))
NUM_ITEMS = 2 * CHUNK_ITEMS + 5


def cache_in(folder, depth=1, budget_bytes=10**9, others=()):
    return PrefixCache.beside(folder, depth, budget_bytes, others)


def entries(folder):
    return sorted(path for path in prefix_place(folder).glob("*/"))


def rows(positions):
    """Return outputs of three numbers per item that tell the item."""
    return torch.stack([positions, positions * 2, positions * 3], dim=1).float()


def open_entry(cache, key="a", num_items=NUM_ITEMS):
    return cache.open({"key": key}, num_items, (3,), torch.float32)


def noise(num_items=NUM_ITEMS, digest="noise"):
    pixels = torch.randint(0, 256, (num_items, 3, 10, 10), generator=torch.Generator().manual_seed(0)).to(torch.uint8)

    def read(positions, crop_size):
        edge = (10 - crop_size) // 2
        return pixels[positions][:, :, edge : edge + crop_size, edge : edge + crop_size]

    return LabelledItems(read, torch.zeros(num_items, dtype=torch.int64), digest)


class Counting(nn.Module):
    """A frozen block that counts the items it ran for."""

    num_items = 0

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        self.num_items += len(x)
        return self.convolution(x)


def frozen_blocks():
    torch.manual_seed(0)
    return nn.Sequential(Counting(), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 2, 3))).eval()


def frozen_prefix(blocks, cache, *, preprocessing=PREPROCESSING, numerics=ON_CPU, digests=("1", "2"), **options):
    return FrozenPrefix(blocks, preprocessing, numerics, digests=digests, cache=cache, **options)


def outputs(prefix, items, view=None, positions=None):
    with prefix:
        return prefix.feed(items, view).inputs(torch.arange(NUM_ITEMS) if positions is None else positions)


# One entry


def test_filled_outputs_are_read_in_any_order_by_anyone(tmp_path):
    entry = open_entry(cache_in(tmp_path))
    assert not entry.is_complete
    entry.fill(rows)
    entry.close()
    again = open_entry(cache_in(tmp_path))
    assert again.is_complete
    positions = torch.tensor([NUM_ITEMS - 1, 0, 7, 7])
    assert torch.equal(again.read(positions, torch.device("cpu")), rows(positions))
    again.close()


@pytest.mark.parametrize("fault", [KeyboardInterrupt, MemoryError, OSError])
def test_an_interrupted_fill_leaves_no_wrong_chunks(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(prefixes, "SYNC_BYTES", 1)
    computed = []

    def interrupted(positions):
        if computed:
            raise fault
        computed.append(positions)
        return rows(positions)

    entry = open_entry(cache_in(tmp_path))
    with pytest.raises(fault):
        entry.fill(interrupted)
    entry.close()
    again = open_entry(cache_in(tmp_path))
    later = []
    again.fill(lambda positions: later.append(positions) or rows(positions))
    assert torch.equal(torch.cat([*computed, *later]).sort().values, torch.arange(NUM_ITEMS))
    assert torch.equal(again.read(torch.arange(NUM_ITEMS), torch.device("cpu")), rows(torch.arange(NUM_ITEMS)))
    again.close()


def test_nothing_counts_as_there_before_it_reached_the_disk(tmp_path, monkeypatch):
    def fail(file):
        raise OSError(errno.EIO, "the disk is broken")

    entry = open_entry(cache_in(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail, raising=False)
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="broken"):
            entry.fill(rows)
    entry.close()
    again = open_entry(cache_in(tmp_path))
    computed = []
    again.fill(lambda positions: computed.append(positions) or rows(positions))
    assert sum(len(positions) for positions in computed) == NUM_ITEMS
    again.close()


def test_an_entry_that_was_cut_is_begun_anew(tmp_path):
    entry = open_entry(cache_in(tmp_path))
    entry.fill(rows)
    entry.close()
    os.truncate(entry.directory / "outputs.bin", 100)
    again = open_entry(cache_in(tmp_path))
    assert not again.is_complete
    again.close()


def test_two_processes_fill_one_entry_at_once_and_share_the_work(tmp_path):
    code = textwrap.dedent(f"""
        import sys, time, torch
        from pathlib import Path
        from raysnap.training import prefix_cache as prefixes
        prefixes.SYNC_BYTES = 1
        root, num_items, computed = Path({str(tmp_path)!r}), {40 * CHUNK_ITEMS}, []
        def compute(positions):
            computed.append(int(positions[0]))
            time.sleep(0.03)
            return torch.stack([positions, positions * 2, positions * 3], dim=1).float()
        cache = prefixes.PrefixCache.beside(root, 1, 10**9)
        entry = cache.open({{"key": "a"}}, num_items, (3,), torch.float32)
        (root / sys.argv[1]).touch()
        while not all((root / name).exists() for name in "ab"):
            time.sleep(0.005)
        entry.fill(compute)
        read = entry.read(torch.arange(num_items), torch.device("cpu"))
        assert entry.is_complete and torch.equal(read[:, 2], torch.arange(num_items) * 3.0)
        print(len(computed))
    """)
    processes = [
        subprocess.Popen([sys.executable, "-c", code, name], stdout=subprocess.PIPE, text=True) for name in "ab"
    ]
    counts = [int(process.communicate(timeout=120)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert all(0 < count < 40 for count in counts)
    assert len(entries(tmp_path)) == 1


# Room


def test_who_was_used_longest_ago_makes_room(tmp_path):
    cache = cache_in(tmp_path, budget_bytes=2 * (12 * NUM_ITEMS + 3))
    for time_s, key in enumerate("ab"):
        entry = open_entry(cache, key)
        entry.close()
        os.utime(entry.directory, (time_s, time_s))
    kept = entries(tmp_path)
    open_entry(cache, "a").close()  # used again, now
    third = open_entry(cache, "c")
    third.close()
    assert len(entries(tmp_path)) == 2
    assert len({*entries(tmp_path)} & {*kept}) == 1
    used_again = open_entry(cache, "a")
    assert used_again.directory in kept
    used_again.close()


def test_who_is_in_use_stays_and_then_there_is_no_room(tmp_path):
    cache = cache_in(tmp_path, budget_bytes=2 * (12 * NUM_ITEMS + 3) - 1)
    held = open_entry(cache, "a")
    held.fill(rows)
    assert open_entry(cache, "b") is None
    assert entries(tmp_path) == [held.directory]
    held.close()
    other = open_entry(cache, "b")
    assert entries(tmp_path) == [other.directory]
    other.close()


def test_nobody_makes_room_for_what_would_never_fit(tmp_path):
    cache = cache_in(tmp_path, budget_bytes=12 * NUM_ITEMS + 3)
    open_entry(cache, "a").close()
    before = entries(tmp_path)
    assert open_entry(cache, "b", num_items=2 * NUM_ITEMS) is None
    assert entries(tmp_path) == before


def test_the_datasets_of_a_job_share_one_budget(tmp_path):
    birds, cars = tmp_path / "birds", tmp_path / "cars"
    for folder in (birds, cars):
        folder.mkdir()
    open_entry(cache_in(birds, others=[cars])).close()
    entry = open_entry(cache_in(cars, budget_bytes=2 * (12 * NUM_ITEMS + 3) - 1, others=[birds]))
    entry.close()
    assert (len(entries(birds)), len(entries(cars))) == (0, 1)


def test_a_disk_without_room_means_no_cache(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=disk_cache.KEEP_FREE_BYTES))
    assert open_entry(cache_in(tmp_path)) is None
    assert entries(tmp_path) == []


def test_a_read_only_dataset_is_cached_in_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    place = prefix_place(tmp_path / "birds")
    assert place.is_relative_to(tmp_path / "cache")
    assert place != prefix_place(tmp_path / "cars")


# What trained blocks are given


class Tokens(nn.Module):
    """Turns an image into a sequence of vectors, as vision transformers do."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(3, 32)

    def forward(self, x):
        return self.project(x.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("is_cached", [True, False])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_frozen_attention_is_the_same_in_every_gradient_mode(tmp_path, is_cached, mode):
    """Attention in eval mode has a faster way with other bits, and takes it only where nothing needs a gradient."""
    torch.manual_seed(0)
    blocks = nn.Sequential(Tokens(), EncoderBlock(4, 32, 64, 0.0, 0.0)).eval()
    blocks[1].requires_grad_(True)  # as in a model of which some blocks train
    items, positions = noise(), torch.arange(CHUNK_ITEMS)
    with torch.no_grad():
        expected = outputs(frozen_prefix(blocks, None), items, positions=positions)
    with mode():
        found = outputs(frozen_prefix(blocks, cache_in(tmp_path, 2) if is_cached else None), items, positions=positions)
    assert torch.equal(found, expected)
    with torch.enable_grad():
        assert found.requires_grad is False


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("view", [None, View(3, 1)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_cached_outputs_are_those_of_the_frozen_blocks(tmp_path, depth, view, channels_last):
    numerics = Numerics(torch.device("cpu"), channels_last=channels_last)
    items, blocks = noise(), frozen_blocks()
    plain = outputs(frozen_prefix(blocks, None, numerics=numerics), items, view)
    for _ in range(2):
        cached = outputs(frozen_prefix(blocks, cache_in(tmp_path, depth), numerics=numerics), items, view)
        torch.testing.assert_close(cached, plain)
        if channels_last and depth == 2:
            assert cached.is_contiguous(memory_format=torch.channels_last)
    assert cached.requires_grad is False


def test_frozen_blocks_run_once_per_item_for_all_trials(tmp_path):
    blocks = frozen_blocks()
    outputs(frozen_prefix(blocks, cache_in(tmp_path)), noise())
    one_for_the_shape = 1
    assert blocks[0].num_items == NUM_ITEMS + one_for_the_shape
    blocks[0].num_items = 0
    outputs(frozen_prefix(blocks, cache_in(tmp_path)), noise())
    assert blocks[0].num_items == one_for_the_shape


@pytest.mark.parametrize(
    "change",
    [
        {"digests": ("1", "3")},
        {"items": noise(digest="other")},
        {"view": View(0, 0)},
        {"view": View(1, 0)},
        {"view": View(0, 1)},
        {"preprocessing": Preprocessing(resize_size=10, image_size=9)},
        {"preprocessing": Preprocessing(resize_size=10, image_size=8, mean=(0.5, 0.5, 0.5))},
        {"numerics": Numerics(torch.device("cpu"), torch.bfloat16)},
        {"numerics": Numerics(torch.device("cpu"), channels_last=True)},
        {"depth": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_entry_is_used_for_nothing_else(tmp_path, change):
    outputs(frozen_prefix(frozen_blocks(), cache_in(tmp_path, 2)), noise())
    options = dict(change)
    items, view, depth = options.pop("items", noise()), options.pop("view", None), options.pop("depth", 2)
    outputs(frozen_prefix(frozen_blocks(), cache_in(tmp_path, depth), **options), items, view)
    assert len(entries(tmp_path)) == 2


def test_what_lies_behind_the_cached_depth_is_no_part_of_the_key(tmp_path):
    for digests in (("1", "2"), ("1", "3")):
        outputs(frozen_prefix(frozen_blocks(), cache_in(tmp_path), digests=digests), noise())
    assert len(entries(tmp_path)) == 1


def test_half_precision_is_kept_as_such(tmp_path):
    numerics = Numerics(torch.device("cpu"), torch.bfloat16)
    cached = outputs(frozen_prefix(frozen_blocks(), cache_in(tmp_path), numerics=numerics), noise())
    stored = sum(path.stat().st_size for path in prefix_place(tmp_path).rglob("outputs.bin"))
    assert stored == NUM_ITEMS * 4 * 6 * 6 * 2
    plain = outputs(frozen_prefix(frozen_blocks(), None, numerics=numerics), noise())
    torch.testing.assert_close(cached, plain)


def test_a_view_of_an_item_does_not_depend_on_what_is_beside_it(tmp_path):
    prefix, view = frozen_prefix(nn.Sequential(), None), View(5, 2)
    whole = outputs(prefix, noise(), view).clone()
    for positions in (torch.tensor([7]), torch.tensor([NUM_ITEMS - 1, 7, 0])):
        assert torch.equal(outputs(prefix, noise(), view, positions), whole[positions])
    assert not torch.equal(outputs(prefix, noise(), View(5, 3)), whole)


@pytest.mark.parametrize("is_fixed", [False, True])
def test_only_fixed_views_of_known_items_are_cached(tmp_path, is_fixed):
    items = noise(digest=None) if is_fixed else noise()
    with frozen_prefix(frozen_blocks(), cache_in(tmp_path)) as prefix:
        prefix.feed(items, View(0, 0), is_fixed=is_fixed).inputs(torch.arange(3))
    assert entries(tmp_path) == []


def test_without_room_frozen_blocks_run_with_one_warning(tmp_path, caplog):
    caplog.set_level("INFO")
    with frozen_prefix(frozen_blocks(), cache_in(tmp_path, budget_bytes=10)) as prefix:
        for digest in ("a", "b"):
            assert len(prefix.feed(noise(digest=digest)).inputs(torch.arange(3))) == 3
    assert [record.message.count("no room for") for record in caplog.records] == [1]


def test_a_failing_disk_makes_frozen_blocks_run_every_time(tmp_path, monkeypatch, caplog):
    def full(file, content, offset):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    plain = outputs(frozen_prefix(frozen_blocks(), None), noise())
    found = outputs(frozen_prefix(frozen_blocks(), cache_in(tmp_path)), noise())
    assert torch.equal(found, plain)
    assert "No space left on device" in caplog.text


def test_changed_frozen_blocks_never_reach_the_cache(tmp_path):
    def refuse():
        raise FrozenBlockChanged("block stem")

    with pytest.raises(FrozenBlockChanged):
        outputs(frozen_prefix(frozen_blocks(), cache_in(tmp_path), verify=refuse), noise())
    entry = next(iter(entries(tmp_path)))
    assert not any((entry / "index.bin").read_bytes())
