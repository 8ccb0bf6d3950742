"""The process of a command: it starts almost without collecting garbage, and leaves without freeing memory.

Only a process that runs a command does either, or chooses threads; who imports raysnap keeps Python's own ways.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import sys
import threading
from typing import NoReturn

from raysnap.system import note_entry

# Imports make some 400,000 objects that stay: at Python's 700, collections take a fifth of a command's start.
COLLECTED_OBJECTS = 50_000


def run(arguments: list[str] | None = None) -> NoReturn:
    """Run a command line, by default that of this process, and end the process."""
    note_entry()
    # Numpy's matrices here are small. With more threads each product waits for all of them to get a core: on a machine
    # with other work that takes a hundred times the processor time.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.set_threshold(COLLECTED_OBJECTS)
    from raysnap.cli.app import main  # its imports are what this speeds up

    leave(main(arguments))


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
