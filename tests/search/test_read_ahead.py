"""Blocks that are read while torch is imported: which ones, where none, and that the search takes each of them once."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from raysnap import system
from raysnap.config.search_options import SearchOptions
from raysnap.search import read_ahead
from raysnap.search.candidates import find_candidates
from raysnap.search.engine.setup import Setup
from raysnap.search.read_ahead import ReadAhead
from raysnap.system import cache_place
from tests.support.searches import DATA, copy_store, flip_a_bit

pytestmark = [pytest.mark.usefixtures("single_thread"), pytest.mark.xdist_group("searches")]

READ = """
import sys
sys.modules["torch"] = None  # importing it fails
from raysnap import system
from raysnap.config.search_options import SearchOptions
from raysnap.search.candidates import find_candidates
from raysnap.search.engine.setup import Setup
from raysnap.search.read_ahead import ReadAhead
from raysnap.store.store import Store

system.GPU_DRIVERS = ()
store = Store.open(sys.argv[1])
setup = Setup(store.path, sys.argv[2], SearchOptions())
blocks = ReadAhead(store)
blocks.read(setup, setup.open_dataset(), find_candidates(store, None, None), lambda: False)
print(len(blocks._contents))
"""
SEARCH = """
import json, sys, threading
from raysnap import system
from raysnap.search import search
from raysnap.store.store import Store

system.GPU_DRIVERS = ()
reads, read_bytes = [], Store.read_bytes

def read_and_note(store, digest, *args):
    reads.append((digest, threading.current_thread() is threading.main_thread()))
    return read_bytes(store, digest, *args)

Store.read_bytes = read_and_note
result = search(sys.argv[1], sys.argv[2], method="shared")
print(json.dumps([reads, {line.name: line.score for line in result.ranking}, [one.error for one in result.skipped]]))
"""
PACE = """
import json, sys
from raysnap import system
from raysnap.search import ranking

system.GPU_DRIVERS = ()
blocks, learned = [], []

class Noted(ranking.ReadAhead):
    def __init__(self, store):
        super().__init__(store)
        blocks.append(self)

ranking.ReadAhead, import_torch = Noted, ranking._import_torch

def import_and_note(*args):
    found = import_torch(*args)
    from raysnap.search.outlook import Outlook
    Outlook.learn = lambda outlook, work, num_decoded, num_read_bytes, came: learned.append(num_read_bytes)
    return found

ranking._import_torch = import_and_note
result = ranking.search(sys.argv[1], sys.argv[2], method="shared")
print(json.dumps([blocks[0].num_bytes_ahead, learned[0], result.work["block_bytes_read"]]))
"""


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(system, "GPU_DRIVERS", ())


@pytest.fixture
def photos(data_dir, tmp_path):
    shutil.copytree(data_dir / DATA, tmp_path / "photos", ignore=shutil.ignore_patterns(".raysnap"))
    return tmp_path / "photos"


def read(store, photos, is_over=lambda: False, **options):
    setup, blocks = Setup(store.path, str(photos), SearchOptions(**options)), ReadAhead(store)
    blocks.read(setup, setup.open_dataset(), find_candidates(store, None, None), is_over)
    return blocks


def run(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def digests_of(store):
    return {block.digest for candidate in find_candidates(store, None, None) for block in candidate.blocks}


def test_every_block_is_read_once_without_torch(resnets, photos):
    assert run(READ, resnets.path, photos) == len(digests_of(resnets))


def test_what_was_read_is_given_once_and_then_read_again(resnets, photos, monkeypatch):
    blocks, reads = read(resnets, photos), []
    monkeypatch.setattr(
        resnets, "read_bytes", lambda digest, *args: reads.append(digest) or type(resnets).read_bytes(resnets, digest)
    )
    for digest in digests_of(resnets):
        for _ in range(2):
            found, expected = blocks.read_block(digest), resnets.read_block(digest)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(reads) == 3 * len(digests_of(resnets))


@pytest.mark.parametrize(
    "options",
    [{"memory_bytes": 10**9}, {"time_budget_s": 60.0}, {"workers": 2}],
    ids=["memory", "time budget", "workers"],
)
def test_nothing_is_read_where_a_bound_forbids_it(resnets, photos, options):
    assert not read(resnets, photos, **options)._contents


def test_nothing_is_read_where_features_may_be_cached(resnets, photos):
    features = cache_place(photos, "features")
    features.mkdir(parents=True)
    assert read(resnets, photos, feature_cache_bytes=10**8)._contents
    (features / "some").touch()
    assert not read(resnets, photos, feature_cache_bytes=10**8)._contents
    assert read(resnets, photos, feature_cache_bytes=0)._contents


def test_nothing_is_read_for_a_gpu(resnets, photos, monkeypatch, tmp_path):
    monkeypatch.setattr(system, "GPU_DRIVERS", (tmp_path,))
    assert not read(resnets, photos)._contents
    assert read(resnets, photos, device="cpu")._contents


def test_reading_ends_with_the_import_and_with_the_room(resnets, photos, monkeypatch):
    asked = iter([False, False, True])
    first = read(resnets, photos, lambda: next(asked))._contents
    assert len(first) == 2
    room_bytes = sum(content.nbytes for content in first.values())
    monkeypatch.setattr(read_ahead, "free_memory_bytes", lambda: room_bytes)
    for share, num_read in ((1.0, 2), (1 - 1e-6, 1)):
        monkeypatch.setattr(read_ahead, "AHEAD_SHARE", share / read_ahead.FREE_SHARE)
        assert list(read(resnets, photos)._contents) == list(first)[:num_read]


def test_blocks_read_ahead_say_nothing_of_the_pace(resnets, photos):
    read_ahead_bytes, learned_bytes, all_bytes = run(PACE, resnets.path, photos)
    assert 0 < read_ahead_bytes <= all_bytes and learned_bytes == all_bytes - read_ahead_bytes


def test_a_fresh_process_reads_ahead_and_finds_the_same(find, resnets, photos):
    known = find(resnets, method="shared")
    reads, scores, _ = run(SEARCH, resnets.path, photos)
    assert sorted(digest for digest, _ in reads) == sorted(digests_of(resnets))
    assert any(is_ahead for _, is_ahead in reads), "the main thread reads while torch is imported, others later"
    assert scores == pytest.approx({line.name: line.score for line in known.ranking}, abs=1e-6)


def test_a_damaged_block_is_reported_by_the_search(resnets, photos, tmp_path):
    store, _ = copy_store(resnets, tmp_path)
    damaged = flip_a_bit(store, "two", 8)
    assert damaged not in read(store, photos)._contents
    _, scores, errors = run(SEARCH, store.path, photos)
    assert "two" not in scores and "base" in scores
    assert len(errors) == 1 and damaged[:12] in errors[0]
