"""Faults of whole processes and nodes: what was finished stays, what was not is finished by the same command."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import ray
import torch

from raysnap.config.load import dump_yaml
from raysnap.config.parts import ResourcesConfig
from raysnap.jobs.bases import store_base
from raysnap.models.tensor_bytes import decode
from raysnap.planning.sampling import sample_trials
from raysnap.runs.json_fields import read_rows
from raysnap.store.store import Store
from raysnap.training.savepoints import RECORD_NAME, read_savepoint
from raysnap.training.trial_loop import TrainJob, run_trial
from raysnap.tune.options import TrialOutcome
from raysnap.tune.run_trials import run_trials
from tests.support import SUPPORT, fault_jobs

DEEP = os.environ.get("RAYSNAP_DEEP") == "1"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
only_deep = pytest.mark.skipif(not DEEP, reason="a minute of Ray; see tools/deep")


class Driver:
    """`raysnap generate` of one job in processes of its own, one after the other."""

    def __init__(self, directory: Path, seed: int):
        self.config = fault_jobs.generate_config(directory, prefix_cache_bytes=0)
        self.trials = sample_trials(self.config)
        self.config_path = directory / "job.yaml"
        self.config_path.write_text(dump_yaml(self.config))
        self.log_path = directory / "epochs.log"
        self.seed = seed
        self.num_runs = 0

    def run(self, fault: str, address: str | None) -> subprocess.CompletedProcess:
        """Run or resume the job on the Ray at an address, or on one of its own, until the fault strikes."""
        script = SUPPORT / "fault_driver.py"
        arguments = ["generate", str(self.config_path), "--json", *(["--resume"] if self.num_runs else [])]
        self.num_runs += 1
        environment = (
            os.environ | {"FAULT_SEED": f"{self.seed} {fault}"} | ({"RAY_ADDRESS": address} if address else {})
        )
        command = [sys.executable, str(script), fault, str(self.log_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)

    def epochs(self) -> dict[str, list[int]]:
        """Return the epochs of each trial that were reported to Tune, in order, over all runs."""
        logged = [line.split() for line in self.log_path.read_text().splitlines()] if self.log_path.exists() else []
        return {trial.id: [int(epoch) for name, epoch in logged if name == trial.id] for trial in self.trials}

    def rows(self) -> list[dict]:
        return read_rows(self.config.run_dir / "results.jsonl")


def trained_undisturbed(driver: Driver, directory: Path) -> dict[str, list[str]]:
    """Return the block digests of each trial's snapshot had nothing happened, by a loop without Ray."""
    config = driver.config
    store = Store.open(config.store)
    base = driver.rows()[0]["base"]
    job = TrainJob(
        store_dir=config.store,
        dataset_dirs={fault_jobs.DATASET: config.data_dir / fault_jobs.DATASET},
        bases={"resnet18": base},
        preprocessing=fault_jobs.PREPROCESSING,
        seed=config.seed,
        num_train=None,
        num_val=None,
        num_test=None,
    )
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker with one CPU has
    digests = {}
    for trial in driver.trials:
        blocks: dict[str, str] = {}

        def report(_: dict, checkpoint_dir: Path | None, blocks: dict[str, str] = blocks) -> None:
            for path in (checkpoint_dir / "best").iterdir():
                blocks[path.stem] = store.put_block(decode(memoryview(bytearray(path.read_bytes())), path.name)).digest

        run_trial(trial, job, torch.device("cpu"), report)
        frozen = [block.digest for block in store.manifest(base).blocks[: trial.num_frozen]]
        names = [block.name for block in store.manifest(base).blocks[trial.num_frozen :]]
        digests[trial.id] = frozen + [blocks[name] for name in names]
    torch.set_num_threads(num_threads)
    return digests


@only_deep
@pytest.mark.parametrize("seed", range(10))
def test_a_repeatedly_stopped_driver_finishes_without_repeats(ray_local, tmp_path, seed):
    driver = Driver(tmp_path, seed)
    address = ray.get_runtime_context().gcs_address
    for fault, exit_code, address_of_run in [
        ("killed while actors start", -signal.SIGKILL, None),
        ("SIGINT", 130, address),
        ("SIGTERM", 130, None),
        ("killed midway", -signal.SIGKILL, address),
        ("killed before a row", -signal.SIGKILL, address),
        ("killed after a row", -signal.SIGKILL, address),
        ("none", 0, address),
    ]:
        done_before = {row["trial"] for row in driver.rows()}
        epochs_before = driver.epochs()
        finished = driver.run(fault, address_of_run)
        assert finished.returncode == exit_code, (fault, finished.stderr)
        if exit_code == 130:
            assert finished.stderr.splitlines()[-1].endswith(f"generate {driver.config_path} --json --resume")
        if driver.config.store.exists():
            assert Store.open(driver.config.store).verify()["ok"]
        assert all(driver.epochs()[name] == epochs_before[name] for name in done_before), "finished is finished"
    summary = json.loads(finished.stdout)
    assert (summary["num_trials"], summary["num_done"], summary["num_failed"]) == (2, 2, 0)
    assert Counter(row["trial"] for row in driver.rows()) == {trial.id: 1 for trial in driver.trials}
    for name, epochs in driver.epochs().items():
        assert epochs == sorted(set(epochs)), f"{name} trained an epoch twice: {epochs}"
    assert not list(driver.config.run_dir.rglob(RECORD_NAME)), "no checkpoint is left"
    store = Store.open(driver.config.store)
    undisturbed = trained_undisturbed(driver, tmp_path)
    for row in driver.rows():
        assert [entry["epoch"] for entry in row["history"]] == list(range(1, fault_jobs.TRAIN.epochs + 1))
        assert [block.digest for block in store.manifest(row["snapshot"]).blocks] == undisturbed[row["trial"]]


@pytest.mark.parametrize("name", ["pair", *(["killed"] if DEEP else [])])
def test_two_workers_train_the_model_that_one_process_trains(ray_local, tmp_path, name):
    store = Store.open(tmp_path / "store", create=True)
    base = store_base(store, "random", "resnet18", 4, 0, fault_jobs.PREPROCESSING)
    store.set_ref("base", base)
    job = fault_jobs.train_job(tmp_path, kill_step=fault_jobs.NUM_STEPS // 2)
    # Only the head is trained: on CPUs trained BatchNorm takes its statistics from each worker's part.
    trial = fault_jobs.trial(name).model_copy(update={"retrain_index": 0})
    outcomes: list[TrialOutcome] = []
    run_trials(
        [trial],
        job,
        ResourcesConfig(num_workers=2, cpus=1, max_failures=1),
        tmp_path / "ray" / "trials",
        on_end=outcomes.append,
        on_epoch=lambda *_: None,
    )
    assert [(outcome.status, outcome.error) for outcome in outcomes] == [("done", None)]
    alone: dict[str, torch.Tensor] = {}
    run_trial(trial, job, torch.device("cpu"), lambda _, path: alone.update(head(path)))
    together = head(outcomes[0].savepoint.path)
    assert together.keys() == alone.keys()
    for key, tensor in together.items():
        torch.testing.assert_close(tensor, alone[key], rtol=1e-4, atol=1e-5)
    assert (tmp_path / "killed").exists() == (name == "killed")


def head(checkpoint_dir: Path) -> dict[str, torch.Tensor]:
    assert read_savepoint(checkpoint_dir) is not None
    (path,) = (checkpoint_dir / "best").iterdir()
    return decode(memoryview(bytearray(path.read_bytes())), path.name)


@only_deep
@pytest.mark.xdist_group("ray_local")  # nodes of its own, beside which no other Ray may run
def test_trials_spread_over_two_nodes_and_survive_one(tmp_path):
    script = SUPPORT / "fault_cluster.py"
    command = [sys.executable, str(script), str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout.splitlines()[-1])
    assert result["ended"] == {f"trial-{number}": "done" for number in range(3)}
    (doomed,) = result["doomed"]
    nodes_of: dict[str, set[str]] = {}
    for name, node in result["places"]:
        nodes_of.setdefault(name, set()).add(node)
    assert len(set.union(*nodes_of.values())) == 2, "both nodes had work"
    moved = [name for name, nodes in nodes_of.items() if doomed in nodes]
    assert moved, "the node that died had trials"
    assert any(nodes_of[name] != {doomed} for name in moved), "and another node took them over"
