"""A Ray cluster of `ray start` on loopback addresses of this machine, with a token, and jobs submitted to it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT

RAY = str(Path(sys.executable).with_name("ray"))
START_S = 120
JOB_S = 600


@dataclass(frozen=True)
class Submitted:
    """How a job ended, as its client saw it and as the cluster recorded it."""

    client_exit_code: int
    status: str
    driver_exit_code: int | None
    output: str
    duration_s: float


class RayNodes:
    """A head and more nodes, each of which is `ray start --block` in a process group of its own."""

    def __init__(self, directory: Path, network: str, token: str | None = None):
        self.directory = directory
        self.network = network
        self.token = token or secrets.token_hex(32)
        self.home = directory / "home"
        self.home.mkdir(parents=True)
        self.port, self.dashboard_port = free_ports(f"{network}.1", 2)
        self.address = f"{network}.1:{self.port}"
        self.url = f"http://{network}.1:{self.dashboard_port}"
        self.processes: list[subprocess.Popen] = []

    def environment(self, **changes: str | None) -> dict[str, str]:
        """Return the environment of a process that knows the token; a change to None leaves a variable out."""
        settings: dict[str, str | None] = {
            **os.environ,
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "PYTHONPATH": None,  # code comes to the nodes as a job's working folder
            **changes,
        }
        return {name: value for name, value in settings.items() if value is not None}

    def start_head(self, *options: str) -> None:
        """Start the head with its dashboard, and wait for its job server."""
        ports = [f"--port={self.port}", "--dashboard-host", f"{self.network}.1"]
        ports += [f"--dashboard-port={self.dashboard_port}"]
        self.start_process(1, "--head", *ports, *options)
        self.wait_for_nodes(1)

    def start_node(self, number: int, *options: str, mounts: str | None = None) -> None:
        """Start another node, and wait until it has joined the head."""
        self.start_process(number, "--address", self.address, *options, mounts=mounts)
        self.wait_for_nodes(len(self.processes))

    def wait_for_nodes(self, count: int) -> None:
        """Wait until the head counts that many nodes that are alive."""
        request = urllib.request.Request(f"{self.url}/nodes?view=summary")
        request.add_header("Authorization", f"Bearer {self.token}")
        deadline_s = time.monotonic() + START_S
        while True:
            assert time.monotonic() < deadline_s, "".join(self.log(number + 1) for number in range(count))
            time.sleep(1)
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    nodes = json.load(answer)["data"]["summary"]
            except OSError:
                continue
            if sum(node["raylet"].get("state") == "ALIVE" for node in nodes) == count:
                return

    def start_process(
        self, number: int, *options: str, mounts: str | None = None, **changes: str | None
    ) -> subprocess.Popen:
        """Start `ray start` with a node's own address and folder, and changes to its environment.

        Args:
            mounts: shell commands that change what the node sees of the file system; see `can_mount`.
        """
        address = f"{self.network}.{number}"
        agent_port, grpc_port, env_port, metrics_port = free_ports(address, 4)
        command = [RAY, "start", "--block", "--node-ip-address", address, "--disable-usage-stats", *options]
        command += [f"--dashboard-agent-listen-port={agent_port}", f"--dashboard-agent-grpc-port={grpc_port}"]
        command += [f"--runtime-env-agent-port={env_port}", f"--metrics-export-port={metrics_port}"]
        # A folder for each node: nodes that share one delete each other's copies of uploaded code while jobs use them.
        command += ["--object-store-memory=100000000", f"--temp-dir={self.directory}/ray-{number}"]
        if mounts is not None:
            command = ["unshare", "-m", "sh", "-c", f'{mounts} && exec "$@"', "sh", *command]
        with (self.directory / f"node-{number}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env=self.environment(**changes),
                cwd=self.directory,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def log(self, number: int) -> str:
        return (self.directory / f"node-{number}.log").read_text()

    def stop(self) -> None:
        """End every node that was started, the head last."""
        for process in reversed(self.processes):
            for number, patience_s in ((signal.SIGTERM, 15), (signal.SIGKILL, 5)):
                try:
                    os.killpg(process.pid, number)
                    process.wait(patience_s)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue
        self.processes.clear()

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a raysnap command on the cluster."""
        command = [sys.executable, "-m", "raysnap", *map(str, arguments)]
        environment = self.environment(RAY_ADDRESS=self.address, PYTHONPATH=str(ROOT))
        return subprocess.run(command, env=environment, cwd=self.home, capture_output=True, text=True, timeout=JOB_S)

    # Jobs

    def client(self, *arguments: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
        """Run `ray job ...` as a client of the cluster does."""
        verb, *rest = arguments
        return subprocess.run(
            [RAY, "job", verb, "--address", self.url, *rest],
            env=self.environment(**changes),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=JOB_S,
        )

    def submit(self, name: str, command: Sequence[str], *options: str) -> Submitted:
        """Submit `python -m raysnap COMMAND` with the checkout as its working folder; wait for its end."""
        started_s = time.monotonic()
        job = ["--submission-id", name, "--working-dir", ".", *options, "--", "python", "-m", "raysnap", *command]
        client = self.client("submit", *job)
        duration_s = time.monotonic() - started_s
        status, exit_code = ("", None) if "--no-wait" in options else self.outcome(name)
        return Submitted(client.returncode, status, exit_code, client.stdout, duration_s)

    def outcome(self, name: str) -> tuple[str, int | None]:
        """Return a job's status and its driver's exit code, from the job server."""
        program = (
            "import json, sys; from ray.job_submission import JobSubmissionClient as Client;"
            "info = Client(sys.argv[1]).get_job_info(sys.argv[2]);"
            "print(json.dumps([info.status.value, info.driver_exit_code]))"
        )
        command = [sys.executable, "-c", program, self.url, name]
        asked = subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=60)
        assert asked.returncode == 0, asked.stderr
        status, exit_code = json.loads(asked.stdout.splitlines()[-1])
        return status, exit_code


def can_mount() -> bool:
    """Return whether this process may give another one mounts of its own."""
    unshare = shutil.which("unshare")
    return unshare is not None and subprocess.run([unshare, "-m", "true"], capture_output=True).returncode == 0


def free_ports(address: str, count: int) -> list[int]:
    """Return ports that nothing listens on at an address."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind((address, 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        with closing(one):
            pass
    return ports
