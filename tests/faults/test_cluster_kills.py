"""A node, the driver or the head killed at a random moment: a new cluster on the same folders and `--resume` finish.

`RAYSNAP_DEEP=1 scripts/test tests/faults/test_cluster_kills.py -n 0 -s` prints when each was killed; RAYSNAP_SEED moves
the moments.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from raysnap.config.load import dump_yaml
from raysnap.planning.sampling import sample_trials
from raysnap.runs.json_fields import read_rows
from raysnap.store.store import Store
from tests.support import ROOT, fault_jobs
from tests.support.ray_nodes import RayNodes

pytest.importorskip("aiohttp", reason="no dashboard; install '.[cluster]'")

NETWORK = "127.0.6"
NUM_TRIALS = 4
TYPICAL_S = 45.0  # of a job that nothing happens to
PATIENCE_S = 240.0

pytestmark = [
    pytest.mark.skipif(os.environ.get("RAYSNAP_DEEP") != "1", reason="minutes of Ray; RAYSNAP_DEEP=1 runs it"),
    pytest.mark.xdist_group("ray_local"),
    pytest.mark.timeout(0),
]


class Cluster(RayNodes):
    """Two nodes with a CPU each, any of which can be killed with all of its processes."""

    def environment(self, **changes: str | None) -> dict[str, str]:
        """Return what nodes and drivers run with, which have the tests' code."""
        return super().environment(**({"PYTHONPATH": str(ROOT)} | changes))

    def kill(self, number: int) -> None:
        """Kill every process of a node at once, as a power cut does."""
        address = f"{self.network}.{number}"
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if address in re.split(r"[\0 =]", path.read_text(errors="replace")):
                    os.kill(int(path.parent.name), signal.SIGKILL)
        os.killpg(self.processes[number - 1].pid, signal.SIGKILL)


@contextmanager
def two_nodes() -> Iterator[Cluster]:
    directory = Path(tempfile.mkdtemp(prefix="rk"))  # short: Ray's sockets are below it
    cluster = Cluster(directory, NETWORK)
    try:
        cluster.start_head("--num-cpus=1")
        cluster.start_node(2, "--num-cpus=1")
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(directory, ignore_errors=True)


def drive(cluster: Cluster, config_path: Path, *options: str) -> subprocess.Popen:
    environment = cluster.environment(RAY_ADDRESS=cluster.address)
    command = [sys.executable, "-m", "raysnap", "generate", str(config_path), *options]
    with config_path.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, env=environment, cwd=config_path.parent, stdout=log, stderr=log)


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("victim", ["node", "driver", "head"])
def test_a_kill_at_any_moment_loses_and_repeats_nothing(tmp_path, victim, number):
    moment = random.Random(f"{os.environ.get('RAYSNAP_SEED', 0)} {victim} {number}").uniform(2, TYPICAL_S)
    config = fault_jobs.generate_config(tmp_path, num_snapshots=NUM_TRIALS, resources={})
    config_path = tmp_path / "job.yaml"
    config_path.write_text(dump_yaml(config))
    with two_nodes() as cluster:
        driver = drive(cluster, config_path)
        time.sleep(moment)
        if victim == "driver":
            driver.kill()
        else:
            cluster.kill(2 if victim == "node" else 1)
        killed_with = len(read_rows(config.run_dir / "results.jsonl"))
        try:
            exit_code = driver.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            driver.kill()
            pytest.fail(
                f"{victim} killed after {moment:.0f} s: the driver waits\n{config_path.with_suffix('.log').read_text()}"
            )
    if (config.store / "store.json").exists():
        assert Store.open(config.store).verify()["ok"]
    before = read_rows(config.run_dir / "results.jsonl")
    sys.stdout.write(
        f"\n{victim} killed after {moment:.0f} s with {killed_with} rows: exit code {exit_code}, {len(before)} rows\n"
    )
    if victim == "node":
        assert exit_code == 0, config_path.with_suffix(".log").read_text()
    with two_nodes() as cluster:
        options = ["--resume"] if (config.run_dir / "config.yaml").exists() else []
        assert drive(cluster, config_path, *options).wait(PATIENCE_S) == 0, config_path.with_suffix(".log").read_text()
    rows = read_rows(config.run_dir / "results.jsonl")
    assert rows[: len(before)] == before, "what was finished stays"
    assert Counter(row["trial"] for row in rows) == {trial.id: 1 for trial in sample_trials(config)}
    assert {row["status"] for row in rows} == {"done"}
    store = Store.open(config.store)
    assert store.verify()["ok"]
    assert {row["snapshot"] for row in rows} | {rows[0]["base"]} == {manifest.id for manifest in store.manifests()}
