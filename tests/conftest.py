"""What all tests share: a quiet, private Ray, started once and only where a test asks for it, and who runs what.

scripts/test spreads the tests over processes: all that take the Ray go to one of them, all that take the quickstart to
another, and of each other file all go to one.
"""

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

pytest.register_assert_rewrite("tests.support")

# Before anything imports ray, and for the processes that tests start: no token in the home folder, no reports.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray's workers yield to everything else (nice 15): the tests beside them would leave them no time.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - how Ray spells it
# Threads that wait for each other sleep: spinning, two that share one core with other work take ten times as long.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
# Numpy's small products spin while another thread of theirs waits for a core; commands have one thread, too.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
for name in ("RAY_ADDRESS", "OMP_NUM_THREADS"):  # the caller's are not those of the runs that are tested
    os.environ.pop(name, None)
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="raysnap-cache-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
# A shell's background job ignores Ctrl-C, and so would all that it starts: tests that interrupt would test nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A shared machine stalls now and then; the time of one example says nothing.
hypothesis.settings.register_profile("raysnap", deadline=None)
hypothesis.settings.load_profile("raysnap")

OBJECT_STORE_BYTES = 200_000_000
MAX_PROCESSES = 3  # Ray's and the quickstart's wait for half of their time
SHARED = ("ray_local", "quickstart")  # fixtures that take so long to make that one process takes all who need them


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return as many test processes as there are files to test, up to a few; 0 is none beside this one."""
    files = {argument.split("::")[0] for argument in config.args}
    num_files = len(files) if all(file.endswith(".py") for file in files) else MAX_PROCESSES
    return min(num_files, MAX_PROCESSES) if num_files > 1 else 0


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Mark each test with its group for `--dist loadgroup`; the groups that take longest begin first.

    A group is what one process runs: all tests of a shared fixture, else a file, whose fixtures are made once.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            fixtures = getattr(item, "fixturenames", ())
            shared = next((name for name in SHARED if name in fixtures), None)
            item.add_marker(pytest.mark.xdist_group(shared or item.nodeid.split("::")[0]))
    if hasattr(config, "workerinput"):
        import torch

        torch.set_num_threads(1)  # each process would have one per core
        slow = {group_of(item) for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: ((*SHARED, group_of(item)).index(group_of(item)), group_of(item) not in slow))
    yield
    if getattr(config.option, "loadgroup", False):
        for item in items:
            append_group(item)


def append_group(item: pytest.Item) -> None:
    """Append the group to the name of a test where pytest-xdist can't: it says nothing and spreads single tests then.

    Since 9.2 pytest keeps names where pytest-xdist 3.8 doesn't look (pytest-dev/pytest-xdist#1386).
    """
    name = f"{item.nodeid}@{group_of(item)}"
    if item.nodeid.endswith(f"@{group_of(item)}"):
        return
    if hasattr(item, "_id"):
        item._id = type(item._id).parse(name)
    if item.nodeid != name:
        raise pytest.UsageError("tests can't be grouped with these versions of pytest and pytest-xdist; try -n 0")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Of several processes, let those go first that the run waits for."""
    if hasattr(item.config, "workerinput") and group_of(item) not in SHARED and os.nice(0) == 0:
        os.nice(5)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Take the group off the name of a test before it is shown: what is shown can be run."""
    name, mark, group = report.nodeid.rpartition("@")
    if mark and "]" not in group and "PYTEST_XDIST_WORKER" not in os.environ:
        report.nodeid = name


def group_of(item: pytest.Item) -> str:
    """Return the name of what one process runs as a whole, this test in it."""
    mark = item.get_closest_marker("xdist_group")
    assert mark is not None
    return mark.args[0]


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """Start the one Ray of this test run, with 2 CPUs on this machine; it takes about 10 s."""
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
        """Run the same command again, in the same folder."""
        return _run_quickstart(self.directory)


def _run_quickstart(directory: Path) -> subprocess.CompletedProcess:
    # One timed repeat of each search instead of three: nothing that is tested needs the others' 20 s.
    command = [sys.executable, "-m", "raysnap", Quickstart.verb, "--dir", str(directory), "--json", "bench.repeats=1"]
    return subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    """Return the one quickstart of this test run, finished; it takes about two minutes on two cores."""
    directory = tmp_path_factory.mktemp("quickstart") / "quickstart"
    return Quickstart(directory, _run_quickstart(directory))
