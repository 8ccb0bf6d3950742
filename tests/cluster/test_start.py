"""A private Ray: what is said of a process of it that died, and that nothing of it is left in the home folder."""

import json
import os
import subprocess
import sys
import textwrap
import time

import pytest

from raysnap.cluster.start import answer_within, describe_death

LOG = textwrap.dedent(
    """
    [2026-11-28 19:56:30,085 I 26824 26824] (raylet) main.cc:1: Starting
    [2026-11-28 19:56:40,085 E 26824 26824] (raylet) agent.cc:2: An agent is slow
    [2026-11-28 19:56:45,085 C 26824 26824] (raylet) node_manager.cc:3576:  An unexpected system state has occurred. \
    Check failed: statussetor3576.has_value() Timed out waiting for file /tmp/ray/metrics_agent_port_ab
    *** StackTrace Information ***
    """
)
SESSION = """
import json, os, ray, stat, sys
from pathlib import Path
from raysnap.cluster.session import ray_session

@ray.remote
def look():
    path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    return {"mode": os.environ["RAY_AUTH_MODE"], "path": str(path), "rights": stat.S_IMODE(path.stat().st_mode)}

with ray_session(100_000_000):
    seen = ray.get(look.remote())
home, mode = os.listdir(os.environ["HOME"]), os.environ.get("RAY_AUTH_MODE")
left = {"token": Path(seen["path"]).exists(), "home": home, "mode": mode}
print(json.dumps(seen | {"left": left}))
"""


@pytest.mark.parametrize(
    ("log", "code", "said"),
    [
        (LOG, -6, "died (signal 6, Aborted): Timed out waiting for file /tmp/ray/metrics_agent_port_ab"),
        (LOG.replace(" C ", " I "), 1, "died (exit code 1): An agent is slow"),
        ("", -9, "died (signal 9, Killed); its logs in"),
    ],
)
def test_a_death_is_told_with_its_cause_and_its_log(tmp_path, log, code, said):
    (tmp_path / "raylet.out").write_text(log)
    found = describe_death("raylet", code, tmp_path)
    assert said in found
    assert str(tmp_path) in found and "\n" not in found


def test_a_call_that_takes_too_long_is_left_behind():
    ended = []
    with pytest.raises(TimeoutError, match=r"no answer within 0\.2 s"):
        answer_within(0.2, lambda: time.sleep(5))
    with pytest.raises(ZeroDivisionError):
        answer_within(5, lambda: 1 / 0)
    assert answer_within(5, lambda: ended.append(1) or 7) == 7


@pytest.mark.slow
@pytest.mark.xdist_group("ray_local")
def test_a_private_ray_has_a_token_and_leaves_none(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    home = tmp_path / "home"
    home.mkdir()
    command = [sys.executable, "-c", SESSION]
    done = subprocess.run(
        command, env=environment | {"HOME": str(home)}, capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["mode"], seen["rights"]) == ("token", 0o600)
    assert seen["left"] == {"token": False, "home": [], "mode": None}
