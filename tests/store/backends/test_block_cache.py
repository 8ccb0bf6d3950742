"""Blocks of far stores are fetched once per machine, verified whenever they are read, and bounded."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from blake3 import blake3

from raysnap.datasets.disk_cache import clear_cache, find_caches
from raysnap.errors import UsageError
from raysnap.store.backends.block_cache import BUDGET, BlockCache
from raysnap.store.backends.place import object_key
from raysnap.store.store import Store
from raysnap.testing.blocks import equal, make_blocks, put, read
from raysnap.testing.places import open_store
from tests.support import ROOT
from tests.support.places import in_memory
from tests.support.s3_server import BUCKET, environment, faulty_s3_server

CONTENT = bytes(range(256)) * 1000
DIGEST = blake3(CONTENT).hexdigest()


class Source:
    """Where objects are fetched from."""

    def __init__(self, content: bytes = CONTENT):
        self.content, self.num_fetches = content, 0

    def __call__(self) -> memoryview:
        self.num_fetches += 1
        time.sleep(0.02)  # as a network does; others come meanwhile
        return memoryview(bytearray(self.content))


@pytest.fixture
def cache(tmp_path) -> BlockCache:
    return BlockCache(tmp_path / "cache", 10**6)


def test_an_object_is_fetched_once(cache):
    source = Source()
    for _ in range(3):
        assert bytes(cache.read(DIGEST, source, None, None)) == CONTENT
    assert source.num_fetches == 1


def test_many_at_once_fetch_an_object_once(cache):
    source = Source()
    threads = [threading.Thread(target=cache.read, args=(DIGEST, source, None, None)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert source.num_fetches == 1


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1], CONTENT[:-1] + b"x", CONTENT + b"x"])
def test_a_damaged_object_is_fetched_again(cache, damage):
    source = Source()
    cache.read(DIGEST, source, None, None)
    (cache.place / DIGEST).write_bytes(damage)
    assert bytes(cache.read(DIGEST, source, None, None)) == CONTENT
    assert source.num_fetches == 2 and (cache.place / DIGEST).read_bytes() == CONTENT


def test_the_least_recently_used_go_where_the_budget_ends(tmp_path):
    cache = BlockCache(tmp_path, 2 * 10**5)
    contents = [bytes([number]) * 90_000 for number in range(3)]
    digests = [blake3(content).hexdigest() for content in contents]
    for content, digest in zip(contents, digests, strict=True):
        cache.read(digest, Source(content), None, None)
        os.utime(tmp_path / digest, (digests.index(digest) + 1,) * 2)
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == set(digests[1:])


def test_what_is_read_again_is_not_the_first_to_go(tmp_path):
    cache = BlockCache(tmp_path, 2 * 10**5)
    sources = [Source(bytes([number]) * 90_000) for number in range(3)]
    digests = [blake3(source.content).hexdigest() for source in sources]
    for number in (0, 1):
        cache.read(digests[number], sources[number], None, None)
        os.utime(tmp_path / digests[number], (number + 1,) * 2)
    for number in (0, 2):
        cache.read(digests[number], sources[number], None, None)
    kept = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert kept == {digests[0], digests[2]}


def test_a_cache_that_can_not_be_written_is_done_without(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "file").write_text("x")
    cache, source = BlockCache(tmp_path / "file" / "cache", 10**6), Source()
    assert bytes(cache.read(DIGEST, source, None, None)) == CONTENT
    assert "can't be used" in caplog.text


def test_the_budget_is_that_of_the_environment(monkeypatch):
    monkeypatch.setenv(BUDGET, "0")
    source = Source()
    for _ in range(2):
        BlockCache.of_user().read(DIGEST, source, None, None)
    assert source.num_fetches == 2
    monkeypatch.setenv(BUDGET, "lots")
    with pytest.raises(UsageError, match=BUDGET):
        BlockCache.of_user()


def test_it_is_shown_and_cleared_with_other_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    BlockCache.of_user().read(DIGEST, Source(), None, None)
    [found] = find_caches([], with_others=True)
    assert (found.kind, found.path) == ("blocks", tmp_path / "raysnap" / "blocks" / "stores")
    assert clear_cache(found) >= len(CONTENT)
    assert find_caches([], with_others=True) == []


def test_two_processes_fetch_each_block_once(tmp_path):
    code = (
        "import sys, torch; from raysnap.store.store import Store; store = Store.open(sys.argv[1]);"
        "[store.read_block(block.digest) for block in store.manifest('mine').blocks]"
    )
    fetched: Counter[str] = Counter()

    def count(method: str, path: str) -> None:
        if method == "GET" and "/objects/" in path:
            fetched[path.rpartition("/")[2]] += 1

    with faulty_s3_server() as (address, faults), pytest.MonkeyPatch.context() as patch:
        for name, value in (environment(address) | {"XDG_CACHE_HOME": str(tmp_path)}).items():
            patch.setenv(name, value)
        put(Store.open(f"s3://{BUCKET}/store", create=True), name="mine")
        faults.choose = count
        command = [sys.executable, "-c", code, f"s3://{BUCKET}/store"]
        processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
        assert [process.wait() for process in processes] == [0, 0]
    assert set(fetched.values()) == {1} and len(fetched) == 3


def test_damage_in_the_bucket_is_not_hidden_by_what_is_kept_here(tmp_path):
    new_place = in_memory()
    new_place.cache = BlockCache(tmp_path, 10**6)
    store = open_store(new_place.open(), create=True)
    digest = put(store, name="mine").manifest.blocks[0].digest
    read(store, "mine")
    new_place.open().write(object_key(digest), b"damaged")
    assert [one["block"] for one in store.verify()["damaged"]] == [digest]


def test_two_stores_read_a_block_from_the_bucket_once(tmp_path: Path):
    new_place = in_memory()
    new_place.cache = BlockCache(tmp_path, 10**6)
    put(open_store(new_place.open(), create=True), name="mine")
    read_bytes = []
    for _ in range(2):
        bucket = new_place.open()
        assert equal(read(open_store(bucket), "mine"), make_blocks())
        read_bytes.append(bucket.client.requests.num_get)
    assert read_bytes[0] - read_bytes[1] == 3
