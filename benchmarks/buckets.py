"""Measure a store in a bucket: put and verified get beside the plain client and a folder, listings, the node cache.

`benchmarks/buckets.py [--store s3://BUCKET/PREFIX] [--snapshots N] [--blocks N] [--block-mb N] [--dir DIR]`. Without
--store, a server on this machine answers for S3: SeaweedFS where `pip install '.[deep]'` put it, else moto, which takes
most of the processors' time itself. Either says something of requests and of what raysnap adds to the client, and
nothing of S3. With --store, credentials and endpoint come from the environment. What is measured is announced on
stderr; the last line, on stdout, is one JSON document. The prefix should be empty, and is left full.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import requests
from blake3 import blake3

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raysnap.config.folders import BucketAddress, StorePath, store_path
from raysnap.models.blocks import block_names
from raysnap.store.backends.block_cache import BlockCache
from raysnap.store.backends.bucket import Bucket
from raysnap.store.backends.client import Client
from raysnap.store.backends.folder import Folder
from raysnap.store.backends.place import FEW_AT_ONCE, Place, object_key
from raysnap.store.catalog import manifest_key
from raysnap.store.manifest import BlockEntry, DatasetRecord, Manifest, snapshot_id
from raysnap.store.store import Store
from raysnap.store.store_file import check_or_create
from tests.support.s3_server import BUCKET, environment
from tests.support.seaweed import find_seaweed, seaweed

ARCHITECTURE = "mobilenet_v3_small"
ROUNDS = 9
SETTLE_S = 2.5  # the index looks at every file again while its folder changed less than 2 s ago
FILTER = "dataset == 'dataset-3' and accuracy > 0.9 and retrain_index <= 40"
MOTO = """
import sys
from werkzeug.serving import make_server
from moto.moto_server.werkzeug_app import create_backend_app
import logging
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = make_server("127.0.0.1", 0, create_backend_app("s3"), threaded=True)
sys.stdout.write(f"{server.server_port}\\n")
sys.stdout.flush()
server.serve_forever()
"""


def main() -> None:
    """Announce what is measured, measure it, and print one JSON line."""
    options = parse_options()
    if options.act:
        sys.stdout.write(json.dumps(do(options.act, options.store)) + "\n")
        return
    num_bytes = options.blocks * options.block_mb * 2**20
    for line in (
        f"put and get: {options.blocks} blocks of {options.block_mb} MB, {FEW_AT_ONCE} at once, put new, then read",
        "  by the plain client, by a store in the bucket (verified), by a store in a folder; bytes per second,",
        f"  of the first two's reads, one and {FEW_AT_ONCE} at once, in turns, medians of {ROUNDS} and of the share",
        "node cache: the blocks read once more, cold and warm; requests, bytes per second",
        f"listing: {options.snapshots:,} snapshots, manifests alone, in the bucket and a folder: the first list, the",
        "  next, a filter, a search's plan; requests, s, peak RSS of a process that imported all of a search",
        "nothing else should run meanwhile",
    ):
        sys.stderr.write(f"{line}\n")
    with (
        tempfile.TemporaryDirectory(dir=options.dir, prefix="bench-") as folder,
        server(options.store, Path(folder)) as (address, name),
    ):
        figures = {
            "snapshots": options.snapshots,
            "num_bytes": num_bytes,
            "server": name,
            **measure_blocks(address, Path(folder), options.blocks, options.block_mb * 2**20),
            **measure_listing(address, Path(folder), options.snapshots),
        }
    sys.stdout.write(json.dumps(figures) + "\n")


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=store_path, help="an empty prefix of a bucket; by default a server's own")
    parser.add_argument("--snapshots", type=int, default=10_000, help="snapshots that are listed")
    parser.add_argument("--blocks", type=int, default=32, help="blocks that are put and read")
    parser.add_argument("--block-mb", type=int, default=8, help="MB of each")
    parser.add_argument("--act", choices=ACTS, help=argparse.SUPPRESS)
    parser.add_argument("--dir", type=Path, help="where the folder store and the cache are made")
    return parser.parse_args()


@contextmanager
def server(given: BucketAddress | None, folder: Path) -> Iterator[tuple[BucketAddress, str]]:
    """Return the address to measure at, and who answers there: a server of our own where none is given."""
    if given is not None:
        yield given, "given"
        return
    with local_server(folder) as (endpoint, name):
        os.environ.update(environment(endpoint))
        yield BucketAddress(f"s3://{BUCKET}/store"), name


@contextmanager
def local_server(folder: Path) -> Iterator[tuple[str, str]]:
    """Run a server with an empty bucket; return its address and its name."""
    if program := find_seaweed():
        with seaweed(program, folder / "seaweed") as port:
            yield f"http://127.0.0.1:{port}", "SeaweedFS"
        return
    process = subprocess.Popen([sys.executable, "-c", MOTO], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        endpoint = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        requests.put(f"{endpoint}/{BUCKET}", timeout=30).raise_for_status()
        yield endpoint, "moto"
    finally:
        process.kill()
        process.wait()


def measure_blocks(address: BucketAddress, folder: Path, num_blocks: int, block_bytes: int) -> dict[str, float]:
    """Time putting and reading blocks by the plain client, in a bucket, in a folder, and from the node cache."""
    import obstore

    rng = np.random.default_rng(0)
    contents = [rng.bytes(block_bytes) for _ in range(num_blocks)]
    blocks = {blake3(content).hexdigest(): content for content in contents}
    client = Client.connect(address)
    plain = client._store
    figures: dict[str, float] = {}

    def rate(act: Callable[[str], object], at_once: int = FEW_AT_ONCE) -> float:
        begin_s = time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            for _ in pool.map(act, blocks):
                pass
        return num_blocks * block_bytes / 1e6 / (time.perf_counter() - begin_s)

    def measure(name: str, act: Callable[[str], object]) -> None:
        figures[f"{name}_mb_per_s"] = rate(act)

    bucket, store = Bucket(client), Folder(folder / "store")
    check_or_create(store, create=True)
    measure("plain_put", lambda digest: obstore.put(plain, f"plain/{digest}", blocks[digest], chunk_size=8 * 2**20))
    measure("bucket_put", lambda digest: put(bucket, digest, blocks[digest]))
    measure("folder_put", lambda digest: put(store, digest, blocks[digest]))
    for at_once in (1, FEW_AT_ONCE):
        plain_get, bucket_get = [], []
        for _ in range(ROUNDS):
            plain_get.append(rate(lambda digest: obstore.get(plain, f"plain/{digest}").bytes(), at_once))
            bucket_get.append(rate(bucket.read_object, at_once))
        figures[f"plain_get_{at_once}_mb_per_s"], figures[f"bucket_get_{at_once}_mb_per_s"] = map(
            median, (plain_get, bucket_get)
        )
        shares = (ours / theirs for ours, theirs in zip(bucket_get, plain_get, strict=True))
        figures[f"bucket_get_{at_once}_share"] = median(shares)
    measure("folder_get", store.read_object)
    cached = Bucket(client, cache=BlockCache(folder / "cache", 2**40))
    for state in ("cold", "warm"):
        before = client.requests.num_get
        measure(f"{state}_cache_get", cached.read_object)
        figures[f"{state}_cache_num_get"] = client.requests.num_get - before
    client.delete([object_key(digest) for digest in blocks] + [f"plain/{digest}" for digest in blocks])
    return figures


def put(place: Place, digest: str, content: bytes) -> None:
    """Put a block as a store does: asked for first."""
    if not place.has_object(digest, len(content)):
        place.put_object(digest, [content])


def measure_listing(address: BucketAddress, folder: Path, num_snapshots: int) -> dict[str, Any]:
    """Time listings, a filter and a search's plan of many snapshots in a bucket and in a folder, and count requests.

    Each in a process of its own, which says its time after its imports.
    """
    figures: dict[str, Any] = {}
    places: dict[str, tuple[StorePath, Place]] = {
        "bucket": (address, Bucket(Client.connect(address))),
        "folder": (folder / "many", Folder(folder / "many")),
    }
    for name, (path, place) in places.items():
        check_or_create(place, create=True)
        begin_s = time.perf_counter()
        made = ((manifest_key(manifest.id), manifest.to_bytes()) for manifest in manifests(num_snapshots))
        for _ in place.map(lambda one, place=place: place.write(*one), made):
            pass
        sys.stderr.write(f"{name}: {num_snapshots:,} manifests made in {time.perf_counter() - begin_s:.0f} s\n")
        time.sleep(SETTLE_S)
        for act in ("first_ls", *ACTS):
            command = [sys.executable, __file__, "--act", act.removeprefix("first_"), "--store", str(path)]
            figures[f"{name}_{act}"] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            sys.stderr.write(f"{name} {act}: {figures[f'{name}_{act}']}\n")
    return figures


def list_all(store: Store) -> int:
    """List a store's snapshots."""
    return len(store.summaries())


def list_some(store: Store) -> int:
    """List those that match a filter."""
    return len(store.summaries(FILTER))


def plan_search(store: Store) -> int:
    """Plan the first round of a search; no block is read."""
    from raysnap.config.search_options import SearchOptions
    from raysnap.search.narrowing import Field
    from raysnap.search.plan.rungs import plan_rungs
    from raysnap.search.plan.tree import build_tree

    candidates = Field(store, SearchOptions(), store.summaries()).first_round()
    plan_rungs("nested", len(candidates), 160, 120)
    build_tree(candidates, sharing=True)
    return len(candidates)


ACTS = {"ls": list_all, "filter": list_some, "plan": plan_search}


def do(act: str, path: StorePath) -> dict[str, Any]:
    """Do one thing with a store, and return what it took."""
    from raysnap.search import ranking  # noqa: F401 - all that a search imports, so that it isn't timed
    from raysnap.store.backends import client

    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    num_found = ACTS[act](Store.open(path))
    took = {"s": time.perf_counter() - begin_s, "cpu_s": time.process_time() - begin_cpu_s, "num_found": num_found}
    asked = [one.to_dict() for one in client._ASKED.values()]
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's peak before exec
    peak_kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return took | {"peak_rss_bytes": 1024 * int(peak_kib), "requests": asked[0] if asked else {}}


def manifests(num_snapshots: int) -> Iterator[Manifest]:
    """Yield manifests of snapshots that share most of their blocks."""
    rng = np.random.default_rng(1)
    shared = [(name, secrets.token_hex(32)) for name in block_names(ARCHITECTURE)]
    for number in range(num_snapshots):
        depth = int(rng.integers(0, len(shared)))
        own = [(name, secrets.token_hex(32)) for name, _ in shared[-depth - 1 :]]
        blocks = [*shared[: -depth - 1], *own]
        yield Manifest(
            id=snapshot_id(ARCHITECTURE, blocks),
            architecture=ARCHITECTURE,
            num_classes=10,
            blocks=tuple(BlockEntry(name, digest, 10**6) for name, digest in blocks),
            retrain_index=depth,
            dataset=DatasetRecord(name=f"dataset-{number % 9}"),
            metrics={"val_accuracy": float(rng.random())},
            created="2026-01-01T00:00:00Z",
            raysnap_version="0",
        )


if __name__ == "__main__":
    main()
