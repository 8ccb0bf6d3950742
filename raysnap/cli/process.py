"""The process of a command: it starts almost without collecting garbage, and leaves without freeing memory.

Only a process that runs a command does either; who imports raysnap keeps Python's own ways.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

# Imports make some 400,000 objects that stay: at Python's 700, collections take a fifth of a command's start.
COLLECTED_OBJECTS = 50_000

_entered_s: float | None = None


def run(arguments: list[str] | None = None) -> NoReturn:
    """Run a command line, by default that of this process, and end the process."""
    global _entered_s
    _entered_s = time.perf_counter() - _age_s()
    gc.set_threshold(COLLECTED_OBJECTS)
    from raysnap.cli.app import main

    leave(main(arguments))


def since_enter_s() -> float:
    """Return the seconds since this process began; 0 where it runs no command, so that calls count from the call."""
    return 0.0 if _entered_s is None else time.perf_counter() - _entered_s


def leave(exit_code: int) -> NoReturn:
    """End the process as Python does, but leave its memory to the system instead of freeing object after object.

    Threads are waited for, exit handlers run, output is flushed: what a handler prints and what others registered, such
    as Ray or a coverage measurement, is not lost.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # a reader that went away; Python itself says so and exits with 120
        sys.exit(exit_code)
    ctypes.CDLL(None).fflush(None)  # what libraries in C have printed
    os._exit(exit_code)


def _age_s() -> float:
    """Return how long ago this process began, to 10 ms; 0 where the system doesn't tell."""
    try:
        fields = Path("/proc/self/stat").read_text("ascii").rpartition(")")[2].split()
        began_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began_s)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
