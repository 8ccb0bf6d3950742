"""Reads files of weights in processes that may die of it, and says what came of each and what it took.

Run as `python hostile_runner.py FOLDER ARCHITECTURE`: FOLDER/batches.json lists batches of [file, is looked
through first] pairs, a process for each batch; prints a list of outcomes.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from raysnap.errors import WeightsError
from raysnap.models import foreign_pickles, weight_files
from raysnap.models.blocks import random_tensors
from raysnap.models.foreign_pickles import check_checkpoint

CPU_LIMIT_S = 20


def memory_bytes(what: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{what}:"))


def examine(path: Path, architecture: str, is_guarded: bool) -> dict[str, object]:
    """Read the file; return `accepted`, `refused` or `crashed`, why, and the seconds and bytes that it took."""
    foreign_pickles.check_checkpoint = check_checkpoint if is_guarded else lambda path: None
    before_bytes, started_s = memory_bytes("VmRSS"), time.process_time()
    try:
        weight_files.read_weights(path, architecture)
        outcome, message = "accepted", ""
    except WeightsError as error:
        outcome, message = "refused", str(error)
    except BaseException as error:  # noqa: BLE001 - whatever else comes out is what this looks for
        outcome, message = "crashed", repr(error)
    taken_s = time.process_time() - started_s
    return {"outcome": outcome, "message": message, "cpu_s": taken_s, "bytes": memory_bytes("VmHWM") - before_bytes}


def in_a_process(folder: Path, architecture: str, batch: list[tuple[str, bool]]) -> list[dict[str, object]]:
    """Return the outcomes of a batch of files; one that kills its process is crashed, and so are those after it."""
    readable, writable = os.pipe()
    process = os.fork()
    if not process:
        try:
            os.close(1)  # what a gadget prints is no outcome
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S))
            for file, is_guarded in batch:
                os.write(writable, json.dumps(examine(folder / file, architecture, is_guarded)).encode() + b"\n")
        finally:
            os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as pipe:
        outcomes = [json.loads(line) for line in pipe]
    _, status = os.waitpid(process, 0)
    died = {"outcome": "crashed", "message": f"died with status {status}", "cpu_s": 0, "bytes": 0}
    return outcomes + [died] * (len(batch) - len(outcomes))


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, name = Path(sys.argv[1]), sys.argv[2]
    random_tensors(name, 3, 0)  # what the first use of an architecture takes is not the files' doing
    batches = json.loads((folder / "batches.json").read_text())
    outcomes = [outcome for batch in batches for outcome in in_a_process(folder, name, batch)]
    sys.stdout.write(json.dumps(outcomes))
