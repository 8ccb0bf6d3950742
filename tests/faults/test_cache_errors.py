"""Disks without room for the caches of a dataset: an error that says so, never a killed process."""

import shutil
import subprocess
import sys

import pytest

from tests.support import ROOT, SUPPORT


def test_no_map_ever_lacks_a_page(tmp_path):
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("needs unshare, to mount a memory disk")
    script = SUPPORT / "caches_full_disk.py"
    command = [unshare, "--user", "--map-root-user", "--mount", sys.executable, str(script), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if ended.returncode == 77 or "unshare" in ended.stderr.splitlines()[-1:]:
        pytest.skip("this machine lets no one mount a memory disk")
    assert ended.returncode == 0, ended.stdout + ended.stderr
