"""Jobs that a client submits to a cluster of two nodes with a token: exit codes, logs, stops, resumes, no leaks.

`RAYSNAP_DEEP=1 scripts/test tests/faults/test_submitted_jobs.py -n 0 -s` prints how long each job took. The job server
needs the extra `cluster`, which tests do without otherwise.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from raysnap.runs.json_fields import read_rows
from raysnap.store.store import Store
from tests.support.ray_nodes import RayNodes, Submitted, can_mount

pytest.importorskip("aiohttp", reason="no job server; install '.[cluster]'")

pytestmark = [
    pytest.mark.skipif(os.environ.get("RAYSNAP_DEEP") != "1", reason="minutes of Ray; RAYSNAP_DEEP=1 runs it"),
    pytest.mark.xdist_group("ray_local"),
    pytest.mark.timeout(0),
]

NETWORK = "127.0.4"
SMALL = ("image_size=32", "shapes={image_size: 36, num_train: 32, num_val: 8, num_test: 8}")
TRAIN = ("train.epochs=2", "train.batch_size=16", "base.pretraining=null")
ALLOW_STOP = ("--runtime-env-json", '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}')


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayNodes]:
    directory = Path(tempfile.mkdtemp(prefix="rsj"))  # short: Ray's sockets are below it
    nodes = RayNodes(directory, NETWORK)
    try:
        nodes.start_head("--num-cpus=1")
        hidden = directory / "hidden"
        hidden.mkdir()
        nodes.start_node(2, "--num-cpus=1", mounts=f"mount -t tmpfs none {hidden}" if can_mount() else None)
        yield nodes
    finally:
        nodes.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def shared(cluster) -> Path:
    path = cluster.directory / "shared"
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def generated(cluster, shared) -> Submitted:
    return cluster.submit("generate", generate_command(shared, "first"))


def generate_command(shared: Path, name: str, *more: str) -> list[str]:
    places = (f"run_dir={shared}/runs/{name}", f"store={shared}/{name}-store", f"data_dir={shared}/data")
    names = ("architectures=[resnet18]", "datasets=[shapes-shape-a, shapes-colour-a]", "num_snapshots=4")
    return ["generate", "trained_snapshots_small", *places, *names, *SMALL, *TRAIN, *more]


def tell(text: str) -> None:
    """Show a figure; pytest's -s lets it through."""
    sys.stdout.write(f"{text}\n")


def check(job: Submitted, exit_code: int) -> None:
    """Check what the client of a job that wasn't stopped sees: how it ended, and a log without bars."""
    tell(f"\n{job.duration_s:.0f} s, client exit code {job.client_exit_code}, driver's {job.driver_exit_code}")
    assert job.driver_exit_code == exit_code, job.output
    assert job.status == ("FAILED" if exit_code else "SUCCEEDED")
    assert job.client_exit_code == (1 if exit_code else 0), "ray job submit knows these two"
    if exit_code:
        assert f"failed with exit code {exit_code}" in job.output
    log = job.output.partition("Tailing logs")[2]
    assert not re.search(r"[━█⠋\r]|\x1b\[\d*[AK]", log), log
    assert "Traceback" not in log


def test_doctor_looks_at_both_nodes_from_a_job(cluster, shared):
    job = cluster.submit("doctor", ["doctor", str(shared)])
    check(job, 0)
    assert re.findall(rf"^{NETWORK}\.\d(?: \(head\))?", job.output, re.MULTILINE) == [
        f"{NETWORK}.1 (head)",
        f"{NETWORK}.2",
    ]
    (uploaded,) = cluster.directory.glob("ray-1/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    num_bytes = sum(path.stat().st_size for path in uploaded.rglob("*") if path.suffix != ".pyc" and path.is_file())
    tell(f"uploaded {num_bytes / 1e6:.2f} MB")
    assert num_bytes < 4e6


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount")
def test_doctor_names_a_folder_that_nodes_do_not_share(cluster):
    job = cluster.submit("hidden", ["doctor", str(cluster.directory / "hidden")])
    check(job, 1)
    differs, *_ = re.findall(r"^mount: .*", job.output, re.MULTILINE)  # the log, then its end in the message
    assert re.search(rf"tmpfs none at \S+/hidden on {NETWORK}\.2", differs)
    assert re.search(rf"^place \S+/hidden: node \S+ \({NETWORK}\.2\) ", job.output, re.MULTILINE)


def test_generate_tells_its_progress_in_lines(generated, shared):
    check(generated, 0)
    assert re.findall(r"^\[ *\d+ s\] Fine-tunes +(\d)/4", generated.output, re.MULTILINE)[-1] == "4"
    assert "4 of 4 trials done, 0 failed." in generated.output
    rows = [row for row in read_rows(shared / "runs/first/results.jsonl") if row.get("role") == "finetune"]
    assert Counter(row["status"] for row in rows) == {"done": 4}


def test_a_search_with_workers_ranks_as_one_process_does(cluster, generated, shared):
    question = ["search", "--store", f"{shared}/first-store", "--data", f"{shared}/data/shapes-colour-a", "--json"]
    job = cluster.submit("search", [*question, "--workers", "2"])
    check(job, 0)
    document = json.loads(job.output[job.output.index('{\n  "') : job.output.rindex("\n}") + 2])
    alone = subprocess.run([sys.executable, "-m", "raysnap", *question], capture_output=True, text=True, check=True)
    ranked = [[(row["name"], row["score"]) for row in one["ranking"]] for one in (document, json.loads(alone.stdout))]
    assert ranked[0] == ranked[1]


def test_a_bench_and_a_sweep_end_with_0(cluster, generated, shared):
    places = (f"store={shared}/first-store", f"data_dir={shared}/data", *SMALL)
    axes = ("datasets=[shapes-colour-a]", "methods=[shared]", "cache=[warm]", "repeats=1", "synthetic_sets={}")
    small = ("num_train=16", "num_test=8")
    check(cluster.submit("bench", ["bench", "search_bench_small", f"run_dir={shared}/b", *places, *axes, *small]), 0)
    space = ("space={train.optimizer: {grid: [adam, sgd]}}", "datasets=[shapes-shape-a]", "train.epochs=1")
    command = ["sweep", "fashion_mnist_grid_small", f"run_dir={shared}/s", f"store={shared}/sweep-store", places[1]]
    check(cluster.submit("sweep", [*command, *SMALL, *space]), 0)


def test_a_quickstart_ends_with_0(cluster, shared):
    parts = [f"{part}.{key}" for part in ("generate", "bench") for key in SMALL]
    few = ("generate.num_snapshots=2", "generate.train.epochs=1", "generate.base.pretraining=null", "bench.repeats=1")
    few += ("bench.num_train=16", "bench.num_test=8", "bench.methods=[shared]")
    job = cluster.submit("quickstart", ["quickstart", "--dir", str(shared / "quickstart"), *parts, *few])
    check(job, 0)
    assert (shared / "quickstart/run/report.html").exists()


def test_failed_trials_reach_the_client_as_1(cluster, shared):
    command = ["sweep", "fashion_mnist_grid_small", f"run_dir={shared}/f", f"store={shared}/f-store"]
    space = (
        "space={train.lr: {grid: [0.001, 100]}}",
        "datasets=[shapes-shape-a]",
        "train.epochs=4",
        "train.optimizer=sgd",
    )
    job = cluster.submit("failing", [*command, f"data_dir={shared}/data", *SMALL, *space])
    check(job, 1)
    assert re.search(r"^raysnap: 002-\S+: val_loss became nan", job.output, re.MULTILINE)


def test_a_wrong_key_reaches_the_client_as_2(cluster, shared):
    job = cluster.submit("wrong", generate_command(shared, "wrong", "num_snapshot=4"))
    check(job, 2)
    assert "num_snapshot: unknown key; did you mean 'num_snapshots'?" in job.output


@pytest.mark.parametrize("options", [(), ALLOW_STOP], ids=["within 3 s", "within 60 s"])
def test_a_stopped_job_is_completed_by_resume(cluster, shared, options):
    name = f"stopped-{len(options)}"
    command = generate_command(shared, name, "train.epochs=12", "num_snapshots=3")
    cluster.submit(name, command, "--no-wait", *options)
    wait_for(lambda: "Fine-tunes 1/3" in re.sub(" +", " ", cluster.client("logs", name).stdout))
    started_s = time.monotonic()
    stopped = cluster.client("stop", name)
    stop_s = time.monotonic() - started_s
    log = cluster.client("logs", name).stdout
    assert re.search(r"driver_exit_code", cluster.client("list").stdout)
    tell(f"\nstopped in {stop_s:.1f} s: {cluster.outcome(name)}, client exit code {stopped.returncode}")
    assert cluster.outcome(name)[0] == "STOPPED"
    if options:
        assert re.search(rf"raysnap: interrupted; finish it with: raysnap generate .*{name}.* --resume", log), log
    done_before = [row["trial"] for row in read_rows(shared / "runs" / name / "results.jsonl")]
    resumed = cluster.submit(f"{name}-resumed", [*command, "--resume"])
    check(resumed, 0)
    rows = [row for row in read_rows(shared / "runs" / name / "results.jsonl") if row.get("role") == "finetune"]
    assert Counter(Counter(row["trial"] for row in rows).values()) == {1: 3}
    assert {row["status"] for row in rows} == {"done"}
    assert set(done_before) <= {row["trial"] for row in read_rows(shared / "runs" / name / "results.jsonl")}
    assert Store.open(shared / f"{name}-store").verify()["ok"]


def wait_for(is_true) -> None:
    deadline_s = time.monotonic() + 300
    while not is_true():
        assert time.monotonic() < deadline_s
        time.sleep(1)


WITHOUT_TOKEN = {
    "no token": {"RAY_AUTH_TOKEN": None},
    "another token": {"RAY_AUTH_TOKEN": "0" * 64},
    "no mode": {"RAY_AUTH_TOKEN": None, "RAY_AUTH_MODE": None},
}


@pytest.mark.parametrize("changes", WITHOUT_TOKEN.values(), ids=WITHOUT_TOKEN)
def test_who_lacks_the_token_is_refused(cluster, changes):
    client = cluster.client("list", **changes)
    assert client.returncode != 0
    tell(f"\nray job list: exit code {client.returncode}")
    driver = subprocess.run(
        [sys.executable, "-m", "raysnap", "doctor", "--address", cluster.address],
        env=cluster.environment(**changes),
        capture_output=True,
        text=True,
        timeout=120,
    )
    tell(f"raysnap doctor: exit code {driver.returncode}: {driver.stderr.strip()}")
    assert driver.returncode == 4
    (line,) = [line for line in driver.stderr.splitlines() if "gcs_client.cc" not in line]  # Ray's own warning
    assert re.match(rf"raysnap: RAY_ADDRESS {cluster.address}: .*token", line)


def test_a_node_without_the_token_does_not_join(cluster):
    node = cluster.start_process(3, "--address", cluster.address, RAY_AUTH_TOKEN="0" * 64)
    assert node.wait(timeout=120) != 0
    cluster.wait_for_nodes(2)


def test_the_token_is_in_no_file_that_a_job_writes(cluster, generated, shared):
    found = [path for path in shared.rglob("*") if path.is_file() and cluster.token.encode() in path.read_bytes()]
    assert found == []
    assert cluster.token not in generated.output
    of_ray = [path for path in cluster.directory.glob("ray-*/**/*") if is_readable(path)]
    leaks = [str(path) for path in of_ray if cluster.token.encode() in path.read_bytes()]
    tell(f"\n{len(of_ray)} of Ray's own files: {len(leaks)} with the token: {leaks[:5]}")
    assert leaks == []


def is_readable(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size < 50_000_000


def test_one_node_draws_the_trials_that_two_draw(cluster, generated, shared):
    alone = subprocess.run(
        [sys.executable, "-m", "raysnap", *generate_command(shared, "alone")],
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
    )
    assert alone.returncode == 0, alone.stderr
    runs = [shared / "runs" / name for name in ("first", "alone")]
    assert runs[0].joinpath("trials.jsonl").read_text() == runs[1].joinpath("trials.jsonl").read_text()
    accuracies = [
        {row["trial"]: row["metrics"]["val_accuracy"] for row in read_rows(run / "results.jsonl") if "metrics" in row}
        for run in runs
    ]
    assert accuracies[0] == accuracies[1]
