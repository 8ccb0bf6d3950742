"""Private Rays that start side by side, or whose processes are killed while they start.

`RAYSNAP_DEEP=1 scripts/test tests/faults/test_ray_starts.py -n 0 -s` prints how long each start took and what it said.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import ROOT

pytestmark = [
    pytest.mark.skipif(os.environ.get("RAYSNAP_DEEP") != "1", reason="minutes of Ray; RAYSNAP_DEEP=1 runs it"),
    pytest.mark.xdist_group("ray_local"),
    pytest.mark.timeout(0),
]

SESSION = """
import logging, sys, time
from raysnap.cluster.session import ray_session
from raysnap.errors import ClusterError

logging.basicConfig(level=logging.WARNING, format="raysnap: %(message)s", stream=sys.stderr)
started_s = time.monotonic()
try:
    with ray_session(100_000_000):
        import ray
        assert ray.get(ray.remote(lambda: 7).remote()) == 7
except ClusterError as error:
    print(f"raysnap: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
print(f"up and down in {time.monotonic() - started_s:.1f} s", file=sys.stderr)
"""


def start() -> subprocess.Popen:
    """Start a session of Ray in a process of its own."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_AUTH", "RAY_ADDRESS"))
    }
    return subprocess.Popen(
        [sys.executable, "-c", SESSION],
        env=environment | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def children(pid: int, name: str) -> set[int]:
    """Return the process's children of that name."""
    found = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            try:
                if Path(f"/proc/{child}/comm").read_text().strip() == name:
                    found.add(int(child))
            except OSError:
                continue
    return found


def outcome(session: subprocess.Popen) -> tuple[int, str]:
    """Wait for the session's end; return its exit code and what it said, and print it."""
    _, said = session.communicate(timeout=300)
    sys.stdout.write(f"\nexit code {session.returncode}: {said}")
    return session.returncode, said


@pytest.mark.parametrize("gap_s", [0, 2])
def test_two_jobs_start_side_by_side(gap_s):
    first = start()
    time.sleep(gap_s)
    second = start()
    assert [outcome(session)[0] for session in (first, second)] == [0, 0]


@pytest.mark.parametrize(("name", "num_kills", "code"), [("raylet", 1, 0), ("gcs_server", 1, 0), ("raylet", 3, 4)])
def test_a_process_that_is_killed_at_its_start_is_told(name, num_kills, code):
    session = start()
    killed: set[int] = set()
    while session.poll() is None and len(killed) < num_kills:
        for child in children(session.pid, name) - killed:
            os.kill(child, signal.SIGKILL)
            killed.add(child)
        time.sleep(0.005)
    found, said = outcome(session)
    assert found == code
    assert said.count(f"its {name} died (signal 9, Killed)") == num_kills
    assert ("tried 3 times" in said) == (code == 4)
