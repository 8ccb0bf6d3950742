"""How much memory the GPUs have on which a job would run, and how many trials share one; without Ray and torch."""

from __future__ import annotations

import os
import subprocess

CONTEXT_BYTES = 600 * 2**20  # what a process takes of a GPU in addition to torch's tensors: CUDA's context and kernels
MARGIN_PERCENT = 110  # of a trial's peak: equal trials differ by what their allocator could not use
PRETENDED_BYTES = "RAYSNAP_PRETEND_GPU_BYTES"


def trials_per_gpu(peak_bytes: int, gpu_bytes: int) -> int:
    """Return how many trials with this peak share a GPU of this size, with a margin; at least one."""
    return max(1, gpu_bytes * 100 // (peak_bytes * MARGIN_PERCENT))


def known_gpu_bytes() -> tuple[int, ...]:
    """Return the memory of each GPU that a job started here would use, as far as is known before Ray starts.

    These are this machine's; of another cluster's, which RAY_ADDRESS names, nothing is known.
    """
    if (pretended := os.environ.get(PRETENDED_BYTES, "")).isdigit():
        return (int(pretended),)
    if os.environ.get("RAY_ADDRESS"):
        return ()
    command = ["nvidia-smi", "--query-gpu=index,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return ()
    sizes = {index: size for index, _, size in (line.partition(", ") for line in listed)}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = list(sizes) if visible is None else [name.strip() for name in visible.split(",")]
    return tuple(int(sizes[name]) * 2**20 for name in names if sizes.get(name, "").isdigit())
