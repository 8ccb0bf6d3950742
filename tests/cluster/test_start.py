"""A private Ray: what is said of a process of it that died, and that nothing of it is left in the home folder."""

import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from raysnap.cluster import start
from raysnap.cluster.start import answer_within, describe_death, private_folder
from raysnap.errors import ClusterError

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
import contextlib, json, os, ray, stat, sys
import psutil  # which comes with ray
from pathlib import Path
from raysnap.cluster.session import ray_session

@ray.remote
def look():
    path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    rights = [stat.S_IMODE(place.stat().st_mode) for place in (path, path.parent)]
    mode, secret = os.environ["RAY_AUTH_MODE"], os.environ.get("MY_SECRET")
    return {"mode": mode, "path": str(path), "rights": rights, "secret": secret, "niceness": os.nice(0)}

def listening():
    '''Return the addresses at which processes of this Ray listen, as the kernel writes them.'''
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    addresses = {row[9]: row[1].partition(":")[0] for row in rows if row[3] == "0A"}
    found = set()
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                found.add(addresses.get(os.readlink(entry).removeprefix("socket:[").removesuffix("]")))
    return sorted(found - {None})

with ray_session(100_000_000):
    seen = ray.get(look.remote()) | {"listening": listening()}
    session_dir = Path(ray._private.worker._global_node.get_session_dir_path())
    seen["is_inside"] = session_dir.is_relative_to(Path(seen["path"]).parent)
home, mode = os.listdir(os.environ["HOME"]), os.environ.get("RAY_AUTH_MODE")
left = {"folder": Path(seen["path"]).parent.exists(), "home": home, "mode": mode, "secret": os.environ["MY_SECRET"]}
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
def test_a_private_ray_is_private_and_leaves_nothing(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_AUTH", "RAY_worker"))}
    home = tmp_path / "home"
    home.mkdir()
    command = [sys.executable, "-c", SESSION]
    done = subprocess.run(
        command,
        env=environment | {"HOME": str(home), "MY_SECRET": "x"},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["mode"], seen["rights"], seen["secret"]) == ("token", [0o600, 0o700], None)
    assert seen["is_inside"]
    assert seen["niceness"] == os.nice(0)
    if sys.platform == "linux":
        assert seen["listening"]
        assert all(address.endswith("0100007F") for address in seen["listening"])  # 127.0.0.1, in IPv6 too
    assert seen["left"] == {"folder": False, "home": [], "mode": None, "secret": "x"}


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """Name a folder with a short path as the only place for temporary files."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setattr(start, "PLACES", ())
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        yield Path(folder)


def test_the_folder_of_a_ray_is_this_users_alone(temporary):
    folder = private_folder()
    assert folder.parent == temporary
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_place_that_is_too_long_or_closed_is_passed_over(temporary, tmp_path, monkeypatch):
    long = temporary / ("x" * 60)
    long.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    assert private_folder().parent == temporary
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(ClusterError, match=r"xxx: its path is too long .*; /nowhere: No such file .*; set RAY_TMPDIR"):
        private_folder()


SECRETS = [
    "AWS_SECRET_ACCESS_KEY",
    "HF_TOKEN",
    "WANDB_API_KEY",
    "GITHUB_PAT",
    "DB_PASSWORD",
    "AZURE_CLIENT_ID",
    "SENTRY_DSN",
]
NEEDED = [
    "PATH",
    "TOKENIZERS_PARALLELISM",
    "OMP_NUM_THREADS",
    "MONKEY",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
    "http_proxy",
]


def test_processes_that_open_a_bucket_get_what_says_how(monkeypatch):
    for name in SECRETS + NEEDED:
        monkeypatch.setenv(name, "x")
    with start._without_secrets(opens_buckets=True):
        assert {name for name in SECRETS + NEEDED if name in os.environ} == {"AWS_SECRET_ACCESS_KEY", *NEEDED}


def test_processes_of_a_ray_get_no_secrets(monkeypatch):
    for name in SECRETS + NEEDED:
        monkeypatch.setenv(name, "x")
    with start._without_secrets():
        seen = {name for name in SECRETS + NEEDED if name in os.environ}
    assert seen == set(NEEDED)
    assert all(os.environ[name] == "x" for name in SECRETS)
