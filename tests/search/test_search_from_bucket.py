"""A search in a bucket fetches each block once per machine, however many workers it has, and none that is here."""

import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from raysnap.store.store import Store
from tests.support import search_stores
from tests.support.cli_commands import make_dataset
from tests.support.s3_server import BUCKET, environment, faulty_s3_server

ARCHITECTURE = "mobilenet_v3_small"

pytestmark = pytest.mark.slow


def test_two_workers_fetch_blocks_once_and_say_so(tmp_path, monkeypatch):
    with faulty_s3_server() as (server, faults):
        for name, value in environment(server).items():
            monkeypatch.setenv(name, value)
        address = f"s3://{BUCKET}/models"
        store = Store.open(address, create=True)
        for seed in range(3):
            search_stores.put(store, f"m{seed}", search_stores.variant(ARCHITECTURE, seed, 2), ARCHITECTURE)
        needed = {block.digest for manifest in store.manifests() for block in manifest.blocks[:-1]}
        fetched: Counter[str] = Counter()

        def count(method: str, path: str) -> None:
            if method == "GET" and "/objects/" in path:
                fetched[path.rpartition("/")[2]] += 1

        faults.choose = count
        data = str(make_dataset(tmp_path / "pets"))
        asked = ["--store", address, "--data", data, "--image-size", "32", "--feature-cache", "0", "--json", "-v"]
        found, told = [], []
        for workers in ("2", "1"):
            command = [sys.executable, "-m", "raysnap", "search", *asked, "--workers", workers]
            variables = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
            done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=170, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            found.append(json.loads(done.stdout)["ranking"])
            told.append(int(re.search(f"{address}: ([0-9]+) GET", done.stderr)[1]))
            assert set(fetched) >= needed and set(fetched.values()) == {1}, "each once, also after the second search"
        assert [line["snapshot"] for line in found[0]] == [line["snapshot"] for line in found[1]]
        assert told[0] >= told[1] + len(needed), "what workers fetched counts"
