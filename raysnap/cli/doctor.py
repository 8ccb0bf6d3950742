"""Check a machine: package versions, processors, disk, shared memory."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from raysnap.cli.console import simple_table
from raysnap.system import num_cpus, package_version

PACKAGES = ("raysnap", "torch", "torchvision", "ray", "pandas", "safetensors", "blake3")
MIN_DISK_BYTES = 2 * 10**9
MIN_SHARED_MEMORY_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Finding:
    """One thing that was checked; `problem` says what is wrong and what to do, None if nothing is."""

    what: str
    found: str
    problem: str | None = None


def examine(directory: Path) -> list[Finding]:
    """Check everything that raysnap needs.

    Args:
        directory: where runs would be written.
    """
    return [_python(), *_packages(), *_processors(), _disk(directory), _shared_memory()]


def _python() -> Finding:
    return Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _packages() -> list[Finding]:
    findings = []
    for name in PACKAGES:
        try:
            module = importlib.import_module(name)
            version = getattr(module, "__version__", None) or package_version(name) or "unknown"
        except (ImportError, OSError) as error:  # OSError: a shared library that the package needs
            findings.append(Finding(name, "can't be imported", f"{error}; reinstall raysnap"))
        else:
            findings.append(Finding(name, version))
    return findings


def _processors() -> list[Finding]:
    import torch

    gpus = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return [Finding("CPU cores", str(num_cpus())), Finding("GPUs", gpus or "none; everything runs on the CPU")]


def _disk(directory: Path) -> Finding:
    existing = next(path for path in (directory.resolve(), *directory.resolve().parents) if path.exists())
    free_bytes = shutil.disk_usage(existing).free
    found = f"{free_bytes / 1e9:.1f} GB free at {existing}"
    if not os.access(existing, os.W_OK):
        return Finding("disk", found, f"{existing} is not writable; choose another run_dir, store and data_dir")
    if free_bytes < MIN_DISK_BYTES:
        return Finding("disk", found, f"expected at least {MIN_DISK_BYTES / 1e9:.0f} GB; free some")
    return Finding("disk", found)


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


def findings_table(findings: Iterable[Finding]) -> Table:
    """Return the findings, one per line; the column of problems is left out if there are none."""
    rows = [(finding.what, finding.found, finding.problem or "") for finding in findings]
    has_problems = any(problem for *_, problem in rows)
    if has_problems:
        return simple_table(["", "found", "problem"], rows)
    return simple_table(["", "found"], [row[:2] for row in rows])
