"""Crowds at one store: no commit, no name and no needed block is lost, whoever else writes, collects or is killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DEEP = os.environ.get("RAYSNAP_DEEP") == "1"
NUM_WORKERS, NUM_COMMITS = (64, 500) if DEEP else (8, 50)
STORM_S = 7200 if DEEP else 20
MOST_S = 4 * 3600 if DEEP else 180

pytestmark = pytest.mark.timeout(MOST_S)


def crowd(law: str, folder: Path, *numbers: float) -> dict[str, int]:
    """What the crowd did; it works in processes of its own, forked from one without threads."""
    script = Path(__file__).with_name("store_crowd.py")
    command = [sys.executable, str(script), law, str(folder), *map(str, numbers)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=MOST_S)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_concurrent_writers_lose_no_commit_no_shared_block_twice_and_no_move_of_a_name(tmp_path):
    assert crowd("writers", tmp_path, NUM_WORKERS, NUM_COMMITS)["num_commits"] == NUM_WORKERS * NUM_COMMITS


@pytest.mark.slow
def test_writers_collectors_and_readers_killed_at_random_lose_no_needed_block_and_leave_none_unneeded(tmp_path):
    result = crowd("storm", tmp_path, STORM_S, 8128)
    assert result["num_kills"] >= STORM_S
    assert result["num_stored"] >= STORM_S
    assert result["num_live"] > 0
