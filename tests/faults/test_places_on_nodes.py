"""Two real nodes, one with other mounts: what only the head has is told before any work, with the node's name."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from raysnap.cli.app import main
from raysnap.datasets.dataset import open_dataset
from raysnap.runs.json_fields import read_rows
from tests.support import ROOT, fault_jobs
from tests.support.ray_nodes import RayNodes, can_mount

DEEP = os.environ.get("RAYSNAP_DEEP") == "1"
NETWORK = "127.0.72"
COUNT = "import ray; ray.init(log_to_driver=False); print(sum(node['Alive'] for node in ray.nodes()))"

pytestmark = [
    pytest.mark.skipif(not DEEP, reason="takes two minutes; see tools/deep"),
    pytest.mark.skipif(not can_mount(), reason="needs the right to mount"),
    pytest.mark.xdist_group("ray_local"),  # nodes of its own, beside which no other Ray may run
    pytest.mark.timeout(900),
]


@dataclass(frozen=True)
class Places:
    """Folders of a cluster whose second node sees `shared` as the head does, but not the others.

    Attributes:
        head_only: empty there.
        read_only: can't be written there.
        overlaid: reads go through there, and neither writes nor locks.
    """

    nodes: RayNodes
    shared: Path
    head_only: Path
    read_only: Path
    overlaid: Path

    def job(self, name: str, **changes: object) -> Path:
        given = {"num_snapshots": 1, "run_dir": self.shared / name} | changes
        settings = fault_jobs.generate_config(self.shared, **given)
        path = self.shared / f"{name}.json"
        path.write_text(json.dumps(settings.model_dump(mode="json") | {"resources": {"gpus": 0}}))
        return path


def join(nodes: RayNodes, number: int, mounts: str, num_cpus: int) -> None:
    """Start a node that sees other mounts; code is where the tests have it."""
    options = ("--address", nodes.address, f"--num-cpus={num_cpus}")
    nodes.start_process(number, *options, mounts=mounts, PYTHONPATH=str(ROOT))


def wait_for(nodes: RayNodes, count: int) -> None:
    """Wait until a driver counts that many nodes; the job server, which would too, needs more packages."""
    until_s = time.monotonic() + 120
    while True:
        environment = nodes.environment(RAY_ADDRESS=nodes.address)
        counted = subprocess.run([sys.executable, "-c", COUNT], env=environment, capture_output=True, text=True)
        if counted.returncode == 0 and int(counted.stdout.split()[-1]) == count:
            return
        assert time.monotonic() < until_s, counted.stderr
        time.sleep(1)


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Iterator[Places]:
    root = tmp_path_factory.mktemp("places")
    shared, head_only, read_only, overlaid = (root / name for name in ("shared", "head_only", "read_only", "overlaid"))
    for folder in (head_only, read_only, overlaid, root / "upper"):
        folder.mkdir()
    dataset = open_dataset(fault_jobs.DATASET, shared / "data", fault_jobs.SHAPES)
    shutil.copytree(dataset.root, head_only / "mine")
    made = {"kind": "synthesize", "architectures": ["mobilenet_v3_small"], "num_snapshots": 3, "image_size": 32}
    (root / "made.json").write_text(
        json.dumps(made | {"num_classes": 4, "store": str(shared / "made"), "run_dir": str(root / "made")})
    )
    assert main(["synthesize", str(root / "made.json")]) == 0
    shutil.copytree(shared / "made", head_only / "made")
    layers = f"lowerdir={overlaid},upperdir={root}/upper/files,workdir={root}/upper/work"
    mounts = [
        f"mount -t tmpfs none {head_only}",
        f"mount --bind {read_only} {read_only}",
        f"mount -o remount,bind,ro {read_only}",
        f"mount -t tmpfs none {root}/upper",
        f"mkdir {root}/upper/files {root}/upper/work",
        f"mount -t overlay overlay -o {layers} {overlaid}",
    ]
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as short:  # as the paths of sockets have to be
        nodes = RayNodes(Path(short), NETWORK)
        try:
            head = ("--head", f"--port={nodes.port}", "--include-dashboard=false")
            nodes.start_process(1, *head, "--num-cpus=0", PYTHONPATH=str(ROOT))
            wait_for(nodes, 1)
            join(nodes, 2, " && ".join(mounts), num_cpus=2)
            wait_for(nodes, 2)
            yield Places(nodes, shared, head_only, read_only, overlaid)
        finally:
            nodes.stop()


NO_LOCK = "can lock a file there that this machine has locked; mount it so that locks and renames reach all nodes"
NO_FOLDER = "has no such folder; give a folder that all nodes mount at the same path"
NO_COPY = "has no such folder; mount or copy it to the same path on every node"


@pytest.mark.parametrize(
    ("key", "place", "found"),
    [
        ("run_dir", "head_only/run", NO_FOLDER),
        ("store", "head_only/store", NO_FOLDER),
        ("store", "read_only/store", "can't write and rename files there: Read-only file system; mount it so that"),
        ("store", "overlaid/store", NO_LOCK),
        ("data_dir", "head_only/data", NO_FOLDER),
        ("datasets", "head_only/mine", NO_COPY),
        ("--data", "head_only/mine", NO_COPY),
        ("--store", "head_only/made", NO_COPY),
    ],
)
def test_a_folder_of_one_node_is_told_before_any_work(places, key, place, found):
    root = places.shared.parent
    path = root / place
    if key.startswith("--"):
        good = {"--data": places.shared / "data" / fault_jobs.DATASET, "--store": places.shared / "made"}
        arguments = ["search", *(text for option in (good | {key: path}).items() for text in option), "--workers", "2"]
    else:
        arguments = ["generate", places.job("bad", **{key: [str(path)] if key == "datasets" else path})]
    before = listing(root)
    started_s = time.monotonic()
    ended = places.nodes.run(*arguments)
    seconds = time.monotonic() - started_s
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("raysnap:")]
    print(f"{seconds:.1f} s: {line}")  # noqa: T201 - shown by `pytest -s`
    assert re.search(rf"{path}\S*: node \S+ \({NETWORK}.2\) {re.escape(found)}", line)
    assert line.startswith(f"raysnap: {key.replace('datasets', 'dataset')}")
    assert ended.returncode == 2
    assert listing(root) == before


def test_a_benchmark_names_the_node_without_its_store(places):
    bench = {
        "kind": "bench",
        "store": str(places.head_only / "made"),
        "datasets": [fault_jobs.DATASET],
        "image_size": 32,
    }
    folders = {"data_dir": str(places.shared / "data"), "run_dir": str(places.shared / "bench")}
    path = places.shared / "bench.json"
    path.write_text(json.dumps(bench | folders | {"shapes": fault_jobs.SHAPES.model_dump(), "resources": {"gpus": 0}}))
    ended = places.nodes.run("bench", path)
    assert ended.returncode == 2
    assert re.search(rf"store \S+: node \S+ \({NETWORK}.2\) {re.escape(NO_COPY)}", ended.stderr)
    assert not (places.shared / "bench").exists()


def listing(root: Path) -> list[Path]:
    """Every path below a folder but those of caches."""
    return sorted(path for path in root.rglob("*") if ".raysnap" not in path.parts)


def test_shared_folders_are_used(places):
    ended = places.nodes.run("generate", places.job("good"))
    assert ended.returncode == 0, ended.stderr
    assert not list(places.shared.rglob(".raysnap-probe*"))
    assert not list(places.shared.rglob(".driver-*"))


def test_a_bad_node_that_joins_later_soon_ends_the_job(places):
    run_dir = places.shared / "late"
    with ThreadPoolExecutor() as pool:
        running = pool.submit(places.nodes.run, "generate", places.job("late", num_snapshots=60))
        while not read_rows(run_dir / "results.jsonl"):
            assert not running.done(), running.result()
            time.sleep(0.5)
        join(places.nodes, 3, f"mount -t tmpfs none {run_dir}", num_cpus=1)
        ended = running.result()
    line = ended.stderr.splitlines()[-1]
    print(line)  # noqa: T201 - shown by `pytest -s`
    assert ended.returncode == 4
    assert re.search(
        rf"3 trials ended where they can't run: run_dir {run_dir}: node \S+ \({NETWORK}.3\) doesn't see", line
    )
    rows = read_rows(run_dir / "results.jsonl")
    assert sum(f"({NETWORK}.3)" in (row["error"] or "") for row in rows) >= 3
    assert len(rows) < 60
