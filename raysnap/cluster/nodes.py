"""What a node has that jobs need, looked at on this machine or on every node of a cluster, and what differs.

What runs on a node is sent there by value: a node with another raysnap, or none, is examined all the same.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import raysnap.system
from raysnap.system import num_cpus, package_version

PACKAGES = ("raysnap", "torch", "torchvision", "ray", "pandas", "safetensors", "blake3")
MIN_DISK_BYTES = 2 * 10**9
MIN_SHARED_MEMORY_BYTES = 256 * 2**20
MIN_OPEN_FILES = 1024
MAX_CLOCK_OFFSET_S = 2.0  # clocks that are synchronised differ by milliseconds
MAX_ANSWER_S = 60.0  # a node starts a process and imports torch
NUM_ROUND_TRIPS = 5
# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
MIN_DRIVERS = {11: 450, 12: 525, 13: 580}
TRY_GPUS = """
import json, torch
names, error = [], None
try:
    for index in range(torch.cuda.device_count()):
        torch.ones(8, device=f"cuda:{index}").sum().item()
        names.append(torch.cuda.get_device_name(index))
    if not names:
        torch.zeros(1, device="cuda")
except Exception as failure:
    error = str(failure).splitlines()[0]
print(json.dumps([names, error, torch.version.cuda]))
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was checked on a node.

    Attributes:
        what: what was checked.
        found: what is there.
        problem: what is wrong and what to do; None if nothing is.
        is_common: whether all nodes of a cluster should have the same.
    """

    what: str
    found: str
    problem: str | None = None
    is_common: bool = False


@dataclass(frozen=True)
class NodeReport:
    """What was found on one node of a cluster, by its address."""

    address: str
    is_head: bool
    findings: tuple[Finding, ...]


# On a node


def examine_node(places: Sequence[str], num_ray_gpus: int | None = None) -> list[Finding]:
    """Check everything that raysnap needs of the machine that this runs on.

    Args:
        places: folders in which runs, stores or datasets would be; they may not exist yet.
        num_ray_gpus: how many GPUs Ray counts here, each of which torch must be able to use; None without Ray.
    """
    found = [_python(), *_packages(), _cores(), _gpus(num_ray_gpus), _shared_memory(), _open_files()]
    for place in places:
        found += _disk(Path(place), labelled=len(places) > 1)
    return found


def _python() -> Finding:
    system = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding("Python", system, is_common=True)


def _packages() -> list[Finding]:
    findings = []
    for name in PACKAGES:
        try:
            module = importlib.import_module(name)
            version = str(getattr(module, "__version__", None) or package_version(name) or "unknown")
        except (ImportError, OSError) as error:  # OSError: a shared library that the package needs
            findings.append(Finding(name, "can't be imported", f"{error}; reinstall raysnap", is_common=True))
        else:
            findings.append(Finding(name, version, is_common=True))
    return findings


def _cores() -> Finding:
    return Finding("CPU cores", str(num_cpus()))


def _gpus(num_ray_gpus: int | None) -> Finding:
    """Check that torch can compute on each GPU that the driver lists or Ray counts."""
    driver, listed = _nvidia_smi()
    if num_ray_gpus is not None:
        num_expected = num_ray_gpus
    else:
        num_expected = 0 if "CUDA_VISIBLE_DEVICES" in os.environ else len(listed)
    names, error, cuda = _try_gpus() if listed or num_expected else ([], None, None)
    found = (", ".join(names or listed) or "none; everything runs on the CPU") + (
        f" (driver {driver})" if driver else ""
    )
    if num_ray_gpus not in (None, len(listed)):
        found += f"; Ray counts {num_ray_gpus}"
    if len(names) >= num_expected:
        return Finding("GPUs", found)
    minimum = MIN_DRIVERS.get(int((cuda or "0").split(".")[0]))
    if driver and minimum and int(driver.split(".")[0]) < minimum:
        advice = f"torch's CUDA {cuda} needs driver {minimum} or later, found {driver}; use a newer machine image"
    else:
        advice = f"{error}; install a driver and a torch that fit" if error else "the others are hidden from it"
    return Finding("GPUs", found, f"expected {num_expected} that torch can use, found {len(names)}: {advice}")


def _try_gpus() -> tuple[list[str], str | None, str | None]:
    """Return the GPUs that torch computes on, why not on more, and its CUDA version.

    A process of its own sees all of them; Ray hides them from a task that asks for none.
    """
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", TRY_GPUS]
    tried = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if tried.returncode:
        return [], (tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"])[-1], None
    names, error, cuda = json.loads(tried.stdout.splitlines()[-1])
    return names, error, cuda


def _nvidia_smi() -> tuple[str | None, list[str]]:
    """Return the driver's version and the names of the GPUs that it lists; none without a driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None, []
    rows = [line.partition(", ") for line in listed if ", " in line]
    return (rows[0][0] if rows else None), [name for _, _, name in rows]


def _shared_memory() -> Finding:
    path = Path("/dev/shm")
    if platform.system() != "Linux":
        return Finding("shared memory", "not needed here")
    if not path.is_dir():
        return Finding("shared memory", "no /dev/shm", "Ray will be slow; mount a tmpfs there")
    free_bytes = shutil.disk_usage(path).free
    found = f"{free_bytes / 2**20:.0f} MiB free"
    if free_bytes < MIN_SHARED_MEMORY_BYTES:
        return Finding("shared memory", found, "expected 256 MiB; in Docker, add --shm-size=1g")
    return Finding("shared memory", found)


def _open_files() -> Finding:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = "no limit" if soft == resource.RLIM_INFINITY else str(soft)
    if soft != resource.RLIM_INFINITY and soft < MIN_OPEN_FILES:
        advice = f"expected at least {MIN_OPEN_FILES}; raise it with ulimit -n before Ray starts"
        return Finding("open files", found, advice, is_common=True)
    return Finding("open files", found, is_common=True)


def _disk(directory: Path, *, labelled: bool) -> list[Finding]:
    """Check the disk under a folder, and name its mount and file system."""
    label = f" {directory}" if labelled else ""
    resolved = directory.resolve()
    existing = next(path for path in (resolved, *resolved.parents) if path.exists())
    free_bytes = shutil.disk_usage(existing).free
    found = f"{free_bytes / 1e9:.1f} GB free at {existing}"
    problem = None
    if not os.access(existing, os.W_OK):
        problem = f"{existing} is not writable; choose another run_dir, store and data_dir"
    elif free_bytes < MIN_DISK_BYTES:
        problem = f"expected at least {MIN_DISK_BYTES / 1e9:.0f} GB; free some"
    mount = _mount(existing) if existing == resolved else f"no folder yet, on {_mount(existing)}"
    return [Finding(f"disk{label}", found, problem), Finding(f"mount{label}", mount, is_common=True)]


def _mount(path: Path) -> str:
    """Return the file system under a path, such as `nfs4 10.0.0.9:/export at /shared`."""
    best = ("unknown", "/", "unknown")
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        mounts = []
    for line in mounts:
        source, point, kind = [part.replace("\\040", " ") for part in line.split()[:3]]
        if (path == Path(point) or Path(point) in path.parents) and len(point) >= len(best[1]):
            best = (source, point, kind)
    source, point, kind = best
    return f"{kind} {source} at {point}"


# On every node of a cluster


def examine_cluster(places: Sequence[Path]) -> list[NodeReport]:
    """Check every node of the cluster that this process is connected to, all at once; the head comes first.

    A node that doesn't answer has that as its one finding.

    Args:
        places: folders as every node should see them.
    """
    import ray
    from ray import cloudpickle

    sent = (sys.modules[__name__], raysnap.system)
    for module in sent:
        cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        deadline_s = time.monotonic() + MAX_ANSWER_S
        asked = [_ask(node, [str(place) for place in places]) for node in nodes]
        reports = [_report(node, answer, deadline_s) for node, answer in zip(nodes, asked, strict=True)]
    finally:
        for module in sent:
            cloudpickle.unregister_pickle_by_value(module)  # type: ignore[no-untyped-call]
    return sorted(reports, key=lambda report: (not report.is_head, report.address))


def on_node(node: dict[str, Any], function: Any) -> Any:
    """Return the function as a task that needs no CPU and runs on this node or fails."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)


def _ask(node: dict[str, Any], places: list[str]) -> Any:
    return on_node(node, _examined).remote(places, int(node["Resources"].get("GPU", 0)))


def _examined(places: list[str], num_ray_gpus: int) -> list[tuple[str, str, str | None, bool]]:
    """Return a node's findings as plain tuples: classes that were sent by value are others after their way back."""
    from ray._raylet import AuthenticationMode, get_authentication_mode

    is_disabled = get_authentication_mode() == AuthenticationMode.DISABLED
    mode = "off: whoever reaches the cluster's ports can run code on it" if is_disabled else "on"
    token = Finding("token", mode, is_common=True)
    findings = [*examine_node(places, num_ray_gpus), token]
    return [(finding.what, finding.found, finding.problem, finding.is_common) for finding in findings]


def _report(node: dict[str, Any], answer: Any, deadline_s: float) -> NodeReport:
    import ray

    address, is_head = node["NodeManagerAddress"], "node:__internal_head__" in node["Resources"]
    try:
        findings = [Finding(*row) for row in ray.get(answer, timeout=max(0, deadline_s - time.monotonic()))]
        findings.append(_clock(node))
    except ray.exceptions.GetTimeoutError:
        ray.cancel(answer, force=True)
        problem = f"no task started there within {MAX_ANSWER_S:.0f} s; look at its raylet's log, or remove the node"
        findings = [Finding("answer", "none", problem)]
    except ray.exceptions.RayError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        findings = [Finding("answer", "none", f"a task that looks at the node fails: {reason}")]
    return NodeReport(address, is_head, tuple(findings))


def _now_s() -> float:
    return time.time()


def _clock(node: dict[str, Any]) -> Finding:
    """Measure how far a node's clock is ahead of this one's, by the quickest of a few round trips."""
    import ray

    ask = on_node(node, _now_s)
    trips = []
    for _ in range(NUM_ROUND_TRIPS):
        sent_s = time.time()
        theirs_s = ray.get(ask.remote(), timeout=MAX_ANSWER_S)
        received_s = time.time()
        trips.append((received_s - sent_s, theirs_s - (sent_s + received_s) / 2))
    trip_s, offset_s = min(trips)
    found = f"{offset_s * 1000:+.0f} ms (± {trip_s * 500:.0f} ms)"
    if abs(offset_s) - trip_s / 2 > MAX_CLOCK_OFFSET_S:
        return Finding(
            "clock", found, f"expected at most {MAX_CLOCK_OFFSET_S:g} s from this machine's; start NTP there"
        )
    return Finding("clock", found)


def differences(reports: Sequence[NodeReport]) -> list[str]:
    """Return one line for each thing that should be the same on all nodes and isn't, with the nodes that have which."""
    lines = []
    whats = dict.fromkeys(finding.what for report in reports for finding in report.findings if finding.is_common)
    for what in whats:
        nodes_of: dict[str, list[str]] = {}
        for report in reports:
            for finding in report.findings:
                if finding.what == what:
                    nodes_of.setdefault(finding.found, []).append(report.address)
        if len(nodes_of) > 1:
            ordered = sorted(nodes_of.items(), key=lambda item: -len(item[1]))
            lines.append(f"{what}: " + "; ".join(f"{found} on {_names(nodes)}" for found, nodes in ordered))
    return lines


def _names(nodes: Iterable[str]) -> str:
    """Return the addresses, or how many they are where that is shorter."""
    listed = list(nodes)
    return ", ".join(listed) if len(listed) <= 3 else f"{len(listed)} nodes"
