"""What all tests share: a quiet, private Ray, started once and only where a test asks for it, and who runs what.

scripts/test spreads the files over processes: all that take the Ray go to one of them, all that take the quickstart to
another.
"""

import atexit
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# Before anything imports ray, and for the processes that tests start: no token in the home folder, no reports.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray's workers yield to everything else (nice 15): the tests beside them would leave them no time.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - how Ray spells it
# Threads that wait for each other sleep: spinning, two that share one core with other work take ten times as long.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
for name in ("RAY_ADDRESS", "OMP_NUM_THREADS"):  # the caller's are not those of the runs that are tested
    os.environ.pop(name, None)
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="raysnap-cache-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

# A shared machine stalls now and then; the time of one example says nothing.
hypothesis.settings.register_profile("raysnap", deadline=None)
hypothesis.settings.load_profile("raysnap")

OBJECT_STORE_BYTES = 200_000_000
MAX_PROCESSES = 3  # Ray's and the quickstart's wait for half of their time
SHARED = ("ray_local", "quickstart")
TAKES_SHARED = re.compile(rf"(?:def \w+|usefixtures)\([^)]*\b({'|'.join(SHARED)})\b")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """As many test processes as there are files to test, up to a few; 0 is none beside this one."""
    files = {argument.split("::")[0] for argument in config.args}
    num_files = len(files) if all(file.endswith(".py") for file in files) else MAX_PROCESSES
    return min(num_files, MAX_PROCESSES) if num_files > 1 else 0


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives a process one file after the other, in their order; those that share what takes long are as one file."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return shared_by(config.rootpath / file) or file

    config.option.loadscopereorder = False
    return Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes test: begins with the files that share something, which together take longest."""
    if hasattr(config, "workerinput"):
        import torch

        torch.set_num_threads(1)  # each process would have one per core
        items.sort(key=lambda item: (*SHARED, None).index(shared_by(item.path)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Of several processes, those that others wait for go first."""
    if hasattr(item.config, "workerinput") and shared_by(item.path) is None and os.nice(0) == 0:
        os.nice(5)


@cache
def shared_by(path: Path) -> str | None:
    """Which of the fixtures that a test process makes once a test or fixture of the file takes."""
    found = TAKES_SHARED.search(path.read_text(encoding="utf-8"))
    return found[1] if found else None


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
