"""The GPU that Ray gave a process, which torch must find: a node whose driver is too old must not train on its CPU."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from raysnap.errors import ClusterError
from raysnap.system import PRETEND_GPUS

DRIVER_VERSION = Path("/proc/driver/nvidia/version")


def granted_device(num_gpus: float, node: str) -> torch.device:
    """Return the device of a process that Ray gave so many GPUs on a node.

    Raises:
        ClusterError: torch finds no GPU there.
    """
    if not num_gpus:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get(PRETEND_GPUS) == "1":
        return torch.device("cpu")
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs only"
    raise ClusterError(
        f"node {node}: Ray counts a GPU there and gave it away, but torch {torch.__version__}, {built}, finds none "
        f"({_driver_text()}); install a driver and a torch that fit each other, or train on CPUs with resources.gpus=0"
    )


def device_name(device: torch.device) -> str:
    """Return a device's name, as rows and reports show it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    granted = os.environ.get("CUDA_VISIBLE_DEVICES") if os.environ.get(PRETEND_GPUS) == "1" else None
    return f"pretended GPU {granted}" if granted else device.type


def _driver_text() -> str:
    try:
        found = re.search(r"\b(\d+\.\d+(\.\d+)?)\b", DRIVER_VERSION.read_text("utf-8"))
    except OSError:
        return "no NVIDIA driver is loaded"
    return f"NVIDIA driver {found[1]}" if found else "an NVIDIA driver of unknown version"
