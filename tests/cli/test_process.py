"""The process of a command: what it leaves out at its start and its end changes nothing that anyone sees."""

import gc
import json
import subprocess
import sys
import textwrap
import time

import pytest

from raysnap.system import since_enter_s
from tests.support.cli_commands import process, run_json


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )


def test_output_handlers_and_threads_outlast_the_command():
    done = python("""
        import atexit, ctypes, sys, threading, time
        from raysnap.cli.process import leave
        atexit.register(print, "by a handler")
        threading.Thread(target=lambda: (time.sleep(0.2), print("by a thread"))).start()
        ctypes.CDLL(None).printf(b"by C\\n")
        sys.stderr.write("an error without an end")
        sys.stdout.write("first\\n")
        leave(7)
    """)
    assert done.returncode == 7
    assert sorted(done.stdout.splitlines()) == ["by C", "by a handler", "by a thread", "first"]
    assert done.stderr == "an error without an end"


@pytest.mark.parametrize(("arguments", "exit_code"), [(["store", "ls", "--store", "nowhere"], 2), (["--help"], 0)])
def test_the_exit_code_is_the_commands(tmp_path, arguments, exit_code):
    assert process(*arguments, cwd=tmp_path).returncode == exit_code


def test_numpy_computes_small_matrices_in_one_thread(tmp_path):
    told = python("""
        import os
        import raysnap.cli.app
        from raysnap.cli.process import run
        raysnap.cli.app.main = lambda arguments: print(os.environ["OPENBLAS_NUM_THREADS"]) or 0
        run([])
    """)
    assert told.stdout == "1\n"


def test_a_search_needs_no_compiler_and_counts_from_its_start(here):
    process("search", "--data", "pets", "--json", cwd=here)  # the first one of an architecture measures its blocks
    before_s = time.perf_counter()
    arguments = ["search", "--data", "pets", "--feature-cache", "0", "--json"]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "raysnap", *arguments],
        cwd=here, capture_output=True, text=True, check=False,
    )  # fmt: skip
    wall_s = time.perf_counter() - before_s
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "torch" in imported and "torchvision" in imported
    assert {"torch._dynamo", "torch._inductor", "sympy", "scipy", "pandas", "ray"} & imported == set()
    timings_s = json.loads(done.stdout)["timings_s"]
    assert 0 < timings_s["start"] < timings_s["total"] <= wall_s + 0.02  # a process's start is known to 10 ms


def test_a_command_within_a_process_leaves_that_as_it_is(here, capsys):
    threshold, num_frozen = gc.get_threshold(), gc.get_freeze_count()
    document = run_json(capsys, "search", "--data", "pets")
    assert (gc.get_threshold(), gc.get_freeze_count(), gc.isenabled()) == (threshold, num_frozen, True)
    assert "start" not in document["timings_s"] and since_enter_s() == 0
