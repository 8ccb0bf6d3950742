"""A run kept in a bucket whose driver dies goes on on another machine, and nothing is trained twice.

They run with RAYSNAP_DEEP=1 only.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

from raysnap.config.load import dump_yaml
from raysnap.config.sweep import FinetuneConfig
from raysnap.jobs.finetune import finetune
from raysnap.jobs.generate import generate
from raysnap.planning.sampling import sample_trials
from raysnap.report.page import write_report
from raysnap.runs.json_fields import read_rows
from raysnap.runs.run_directory import RunDirectory
from raysnap.store.store import Store
from raysnap.training.savepoints import RECORD_NAME
from tests.support import SUPPORT, fault_jobs
from tests.support.s3_server import BUCKET, environment, s3_server
from tests.support.search_stores import put, variant

DEEP = os.environ.get("RAYSNAP_DEEP") == "1"
STORAGE = f"s3://{BUCKET}/runs/mine"

# An interrupted Tune may keep a CPU of the Ray that tests share, for which others would then wait.
pytestmark = [
    pytest.mark.timeout(0),
    pytest.mark.skipif(not DEEP, reason="interrupts jobs on Ray, for half a minute each; RAYSNAP_DEEP=1 runs it"),
]


@pytest.fixture
def server(monkeypatch):
    with s3_server() as address:
        for name, value in environment(address).items():
            monkeypatch.setenv(name, value)
        yield address


@contextmanager
def interrupted_after_a_row(monkeypatch):
    """Interrupt the job within as Ctrl-C does, once it has written a row; Tune then frees what its trials hold."""
    add_row = RunDirectory.add_row

    def add_row_and_interrupt(run: RunDirectory, row: dict) -> None:
        add_row(run, row)
        if row["role"] != "base":
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "add_row", add_row_and_interrupt)
        yield


def check_finished(run_dir: Path, config, store: Store) -> None:
    rows = read_rows(run_dir / "results.jsonl")
    assert Counter(row["trial"] for row in rows) == {trial.id: 1 for trial in sample_trials(config)}
    assert {row["status"] for row in rows} == {"done"}
    assert not list(run_dir.rglob(RECORD_NAME)), "no checkpoint is left"
    assert store.verify()["ok"]


def test_a_run_goes_on_in_another_folder(ray_local, server, tmp_path, monkeypatch):
    config = fault_jobs.generate_config(tmp_path, storage_path=STORAGE, num_snapshots=4)
    with interrupted_after_a_row(monkeypatch), pytest.raises(KeyboardInterrupt):
        generate(config)
    before = read_rows(config.run_dir / "results.jsonl")
    shutil.rmtree(config.run_dir)
    elsewhere = config.model_copy(update={"run_dir": tmp_path / "elsewhere"})
    generate(elsewhere, resume=True)
    check_finished(elsewhere.run_dir, elsewhere, Store.open(config.store))
    assert read_rows(elsewhere.run_dir / "results.jsonl")[: len(before)] == before
    monkeypatch.chdir(tmp_path)
    page = write_report(STORAGE)
    assert page.resolve() == tmp_path / "report.html"
    assert all(trial.id in page.read_text() for trial in sample_trials(config))


def test_a_finetune_goes_on_in_another_folder(ray_local, server, tmp_path, monkeypatch):
    store = Store.open(tmp_path / "store", create=True)
    put(store, "start", variant("mobilenet_v3_small", 0, 0), "mobilenet_v3_small")
    config = FinetuneConfig.model_validate(
        {
            "dataset": fault_jobs.DATASET,
            "store": tmp_path / "store",
            "data_dir": tmp_path / "data",
            "shapes": fault_jobs.SHAPES.model_dump(),
            "run_dir": tmp_path / "one",
            "storage_path": STORAGE,
            "starts": ["start"],
            "train": {"epochs": 1, "batch_size": 16},
            "space": {"retrain.index": {"grid": [0, 1, 2]}},  # the best one's row is held back
            "resources": {"max_concurrent": 1},
        }
    )
    with interrupted_after_a_row(monkeypatch), pytest.raises(KeyboardInterrupt):
        finetune(config)
    before = read_rows(tmp_path / "one/training/results.jsonl")
    shutil.rmtree(tmp_path / "one")
    finetune(config.model_copy(update={"run_dir": tmp_path / "two"}), resume=True)
    rows = read_rows(tmp_path / "two/training/results.jsonl")
    assert rows[: len(before)] == before
    assert len({row["trial"] for row in rows}) == len(rows) == 3
    page = write_report(STORAGE, tmp_path / "page.html")
    assert all(row["trial"] in page.read_text() for row in rows)


@pytest.mark.skipif(not DEEP, reason="starts Ray twice; RAYSNAP_DEEP=1 runs it")
@pytest.mark.parametrize("fault", ["killed midway", "killed before a row", "killed after a row"])
def test_a_driver_killed_at_once_is_resumed_elsewhere(server, tmp_path, fault):
    logged: dict[str, list[str]] = {}
    for machine, (planted, exit_code) in {"one": (fault, -signal.SIGKILL), "two": ("none", 0)}.items():
        here = tmp_path / machine
        here.mkdir()
        config = fault_jobs.generate_config(here, storage_path=STORAGE, store=f"s3://{BUCKET}/store")
        (here / "job.yaml").write_text(dump_yaml(config))
        command = [sys.executable, str(SUPPORT / "fault_driver.py"), planted, str(here / "epochs"), "generate"]
        more = [str(here / "job.yaml"), "--json", *(["--resume"] if machine == "two" else [])]
        seed = {"FAULT_SEED": str(random.Random(fault).randrange(1000)), "XDG_CACHE_HOME": str(here / "cache")}
        with (here / "log").open("wb") as log:
            done = subprocess.run(
                [*command, *more], env=os.environ | seed, cwd=here, stdout=log, stderr=log, timeout=1500
            )
        assert done.returncode == exit_code, (here / "log").read_text()
        logged[machine] = (here / "epochs").read_text().splitlines() if (here / "epochs").exists() else []
        if machine == "one":
            finished = {row["trial"] for row in read_rows(config.run_dir / "results.jsonl")}
            shutil.rmtree(here / "run")
    check_finished(config.run_dir, config, Store.open(f"s3://{BUCKET}/store"))
    assert not finished & {line.split()[0] for line in logged["two"]}, "what was finished is not trained again"
    sys.stdout.write(f"\n{fault}: {len(finished)} finished, epochs before {logged['one']}, after {logged['two']}\n")
