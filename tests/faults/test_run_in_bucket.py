"""A run kept in a bucket whose driver dies goes on on another machine, and nothing is trained twice.

The case with signal 9 starts Ray twice more, so it runs with RAYSNAP_DEEP=1 only.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from raysnap.config.load import dump_yaml
from raysnap.jobs.generate import generate
from raysnap.planning.sampling import sample_trials
from raysnap.report.page import write_report
from raysnap.runs.json_fields import read_rows
from raysnap.runs.run_directory import RunDirectory
from raysnap.store.store import Store
from raysnap.training.savepoints import RECORD_NAME
from tests.support import SUPPORT, fault_jobs
from tests.support.s3_server import BUCKET, environment, s3_server

DEEP = os.environ.get("RAYSNAP_DEEP") == "1"
STORAGE = f"s3://{BUCKET}/runs/mine"

pytestmark = pytest.mark.timeout(0 if DEEP else 180)


@pytest.fixture
def server(monkeypatch):
    with s3_server() as address:
        for name, value in environment(address).items():
            monkeypatch.setenv(name, value)
        yield address


def check_finished(run_dir: Path, config, store: Store) -> None:
    rows = read_rows(run_dir / "results.jsonl")
    assert Counter(row["trial"] for row in rows) == {trial.id: 1 for trial in sample_trials(config)}
    assert {row["status"] for row in rows} == {"done"}
    assert not list(run_dir.rglob(RECORD_NAME)), "no checkpoint is left"
    assert store.verify()["ok"]


def test_a_run_goes_on_in_another_folder(ray_local, server, tmp_path, monkeypatch):
    config = fault_jobs.generate_config(tmp_path, storage_path=STORAGE)
    add_row = RunDirectory.add_row

    def add_row_and_stop(run: RunDirectory, row: dict) -> None:
        add_row(run, row)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "add_row", add_row_and_stop)
    with pytest.raises(KeyboardInterrupt):
        generate(config)
    monkeypatch.undo()
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
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
