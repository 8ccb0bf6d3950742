"""The machine and the software that a run used."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

from raysnap.system import cpu_name, has_gpu_driver, num_cpus, package_version


def describe_environment() -> dict[str, Any]:
    """Return the versions, processors and commit that a result depends on."""
    versions = {name: package_version(name) for name in ("raysnap", "torch", "torchvision", "ray")}
    return versions | {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "num_cpus": num_cpus(),
        "gpus": _gpu_names(),
        "commit": _commit(),
    }


def _gpu_names() -> list[str]:
    """Return the names of the GPUs that torch finds; where no driver is, torch need not be imported to find none."""
    if not has_gpu_driver():
        return []
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _commit() -> str | None:
    """Return the commit of the checkout that raysnap runs from; None for an installed package."""
    here = Path(__file__).resolve().parents[1]
    if not (here.parent / ".git").exists():
        return None
    command = ["git", "-C", str(here), "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
