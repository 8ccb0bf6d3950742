"""A head without CPUs whose autoscaler may start nodes: GPUs are asked for, waits told, what can't come refused.

`RAYSNAP_DEEP=1 scripts/test tests/faults/test_autoscaled_cluster.py -n 0 -s` prints what each command said and took.
Ray's fake provider starts the nodes as processes of this machine, with GPUs that are only pretended.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from raysnap.runs.json_fields import read_rows
from tests.support import ROOT
from tests.support.ray_nodes import RAY, free_ports

pytestmark = [
    pytest.mark.skipif(os.environ.get("RAYSNAP_DEEP") != "1", reason="minutes of Ray; RAYSNAP_DEEP=1 runs it"),
    pytest.mark.xdist_group("ray_local"),
    pytest.mark.timeout(0),
]

ADDRESS = "127.0.1.1"
SMALL = ("image_size=32", "shapes={image_size: 36, num_train: 32, num_val: 16, num_test: 16}")
HEAD_TYPE = "ray.head.default"  # what the fake provider calls its own
IDLE_MINUTES = 0.25
PROVIDER_FLAGS = ("disable_node_updaters", "disable_launch_config_check", "use_node_id_as_ip")  # one machine, no SSH
EMPTY_LISTS = (
    "cluster_synced_files",
    "head_setup_commands",
    "head_start_ray_commands",
    "initialization_commands",
    "rsync_exclude",
    "rsync_filter",
    "setup_commands",
    "worker_setup_commands",
    "worker_start_ray_commands",
)


class Autoscaled:
    """A head with an autoscaler and no node yet, and what runs on it."""

    def __init__(self, directory: Path, workers: dict[str, float], most: int):
        (port,) = free_ports(ADDRESS, 1)
        self.directory, self.address = directory, f"{ADDRESS}:{port}"
        kind = {"resources": workers | {"object_store_memory": 10**8}, "node_config": {}, "min_workers": 0}
        config = {
            "cluster_name": "fake",
            "max_workers": most,
            "idle_timeout_minutes": IDLE_MINUTES,
            "upscaling_speed": 1.0,
            "provider": {"type": "fake_multinode", "gcs_address": self.address} | dict.fromkeys(PROVIDER_FLAGS, True),
            "head_node_type": HEAD_TYPE,
            "available_node_types": {
                HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "worker": kind | {"max_workers": most},
            },
        }
        config |= {"auth": {}, "file_mounts": {}, "file_mounts_sync_continuously": False}
        config |= {name: [] for name in EMPTY_LISTS}
        (directory / "autoscaling.yaml").write_text(yaml.safe_dump(config))
        command = [RAY, "start", "--head", "--block", "--node-ip-address", ADDRESS, "--port", str(port), "--num-cpus=0"]
        command += [f"--autoscaling-config={directory}/autoscaling.yaml", f"--temp-dir={directory}/ray"]
        command += ["--include-dashboard=false", "--object-store-memory=100000000"]
        settings = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        with (directory / "head.log").open("wb") as log:
            self.process = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log)
        until_s = time.monotonic() + 120
        while "Ray runtime started" not in (directory / "head.log").read_text():
            assert time.monotonic() < until_s and self.process.poll() is None, (directory / "head.log").read_text()
            time.sleep(0.5)

    def run(self, *arguments: str, pretends: bool = True) -> tuple[int, str, float]:
        """Run a command of raysnap; return its exit code, all that it printed and its seconds."""
        settings = {"RAY_ADDRESS": self.address, "PYTHONPATH": str(ROOT)}
        settings |= {"RAYSNAP_PRETEND_GPUS": "1"} if pretends else {}
        started_s = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "raysnap", *arguments],
            env=os.environ | settings,
            cwd=self.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        seconds = time.monotonic() - started_s
        sys.stdout.write(f"\n{shlex.join(arguments)}\n{done.stdout}exit code {done.returncode} after {seconds:.1f} s\n")
        return done.returncode, done.stdout, seconds

    def generate(self, name: str, *overrides: str, **options) -> tuple[int, str, float]:
        """Run a small generate job in a run directory of this name."""
        folders = [f"{key}={self.directory}/{folder}" for key, folder in (("store", "store"), ("data_dir", "data"))]
        config = str(ROOT / "configs" / "trained_snapshots_small.yaml")
        places = [f"run_dir={self.directory}/{name}", *folders, "datasets=[shapes-shape-a]", *SMALL]
        return self.run("generate", config, *places, "train.epochs=1", "base.pretraining=null", *overrides, **options)

    def rank(self, *options: str) -> list[str]:
        """Return the ids of the store's snapshots as a search ranks them."""
        places = ["--store", str(self.directory / "store"), "--data-dir", str(self.directory / "data")]
        code, output, _ = self.run("search", "--data", "shapes-shape-a", *places, "--json", *options)
        assert code == 0, output
        return [one["snapshot"] for one in json.loads(output[output.index("{\n") :])["ranking"]]

    def rows(self, name: str) -> list[dict]:
        return list(read_rows(self.directory / name / "results.jsonl"))

    def num_nodes(self) -> int:
        """Return how many nodes run, the head among them."""
        program = "import ray; ray.init(log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
        settings = os.environ | {"RAY_ADDRESS": self.address}
        command = [sys.executable, "-c", program]
        return int(subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60).stdout)

    def stop(self) -> None:
        """End the head, and the nodes that its autoscaler started, which may outlive it."""
        self.process.terminate()
        self.process.wait(60)
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if f"{self.directory}/ray" in path.read_text():
                    os.kill(int(path.parent.name), signal.SIGKILL)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Make a folder with a short path: Ray's sockets are below it."""
    path = Path(tempfile.mkdtemp(prefix="rsa"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_trials_ask_for_gpus_that_have_yet_to_come(folder):
    cluster = Autoscaled(folder, {"CPU": 2, "GPU": 1}, most=2)
    try:
        code, output, _ = cluster.generate("pretended", "num_snapshots=3")
        assert code == 0, output
        rows = cluster.rows("pretended")
        assert [row["device"] for row in rows] == ["pretended GPU 0"] * 3
        assert all(re.fullmatch(r"[\d.]+", row["node"]) for row in rows)

        code, output, _ = cluster.generate("refused", "num_snapshots=2", pretends=False)
        assert code == 1, output
        for row in cluster.rows("refused"):
            assert row["status"] == "failed"
            assert "Ray counts a GPU there and gave it away, but torch" in row["error"]

        code, output, seconds = cluster.generate("too-much", "num_snapshots=1", "resources.gpus=4")
        assert (code, seconds < 60) == (4, True), output
        assert "each trial needs 4 GPUs and 1 CPU, each on one node" in output

        rankings = [cluster.rank(*options) for options in (("--workers", "2"), ())]
        assert rankings[0] == rankings[1]

        until_s = time.monotonic() + 180
        while cluster.num_nodes() > 1:  # idle nodes go
            assert time.monotonic() < until_s
            time.sleep(5)
    finally:
        cluster.stop()


def test_a_trained_base_ends_on_nodes_without_gpus(folder):
    cluster = Autoscaled(folder, {"CPU": 2}, most=2)
    try:
        base = "base.pretraining={dataset: shapes-shape-a, train: {epochs: 1, batch_size: 16}}"
        code, output, _ = cluster.generate("based", "num_snapshots=2", base, pretends=False)
        assert code == 0, output
        assert [row["device"] for row in cluster.rows("based")] == ["cpu"] * 4  # a base of each architecture, too
    finally:
        cluster.stop()
