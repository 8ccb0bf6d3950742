"""What all tests share: a quiet, private Ray, started once and only where a test asks for it."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

# Before anything imports ray, and for the processes that tests start: no token in the home folder, no reports.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.pop("RAY_ADDRESS", None)
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="raysnap-cache-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

# A shared machine stalls now and then; the time of one example says nothing.
hypothesis.settings.register_profile("raysnap", deadline=None)
hypothesis.settings.load_profile("raysnap")

OBJECT_STORE_BYTES = 200_000_000


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """The one Ray of this test run, with 2 CPUs on this machine; starting it takes about 10 s."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    yield
    ray.shutdown()


@dataclass(frozen=True)
class Quickstart:
    """The quickstart as its script runs it, in a process of its own."""

    directory: Path
    finished: subprocess.CompletedProcess
    verb: str = "quickstart"

    def run(self) -> subprocess.CompletedProcess:
        """The same command again, in the same folder."""
        return _run_quickstart(self.directory)


def _run_quickstart(directory: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "raysnap", Quickstart.verb, "--dir", str(directory), "--json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    """One finished quickstart for the whole test run; it takes about two minutes on two cores."""
    directory = tmp_path_factory.mktemp("quickstart") / "quickstart"
    return Quickstart(directory, _run_quickstart(directory))
