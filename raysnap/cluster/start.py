"""Start a private Ray on this machine: watched while it starts, tried again where it dies, with a token of its own.

A head node is a GCS, a raylet and the raylet's agents, each a process. Ray itself waits up to four minutes for a raylet
that died, and a raylet dies when its agents, which import much, take longer than 15 s on a busy machine.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import ray
from ray._private import node as ray_node
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config, persist_port, wait_for_persisted_port

from raysnap.errors import ClusterError, describe_failure

PAUSES_S = (2.0, 8.0)  # between attempts, of which there is one more
REGISTER_S = 90.0  # a raylet that the GCS does not know by then is given up
GCS_PORT_MS = 60_000  # where Ray names no limit, as before 2.60
UNUSED_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
MAX_CAUSE_CHARACTERS = 240

LOOPBACK = "127.0.0.1"
PLACES = ("/tmp", "/var/tmp")  # with short paths
# Of a Unix socket's path, 107 bytes on Linux and 103 on macOS, Ray takes some 65 below the folder that it is given.
MAX_FOLDER_BYTES = 38
# Names of variables that hold secrets. No process of a private Ray needs one, as trackers and downloads run in the
# driver; but where its processes read a store in a bucket, they need what says how.
_OF_BUCKETS = ("AWS_",)
_SECRET = re.compile(
    r"SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|TOKEN(?!IZER)|(API|ACCESS|PRIVATE|ACCOUNT|SAS|ENCRYPTION)_?KEY|APIKEY|_PAT$|^PAT$"
    r"|^(AWS|AZURE|GOOGLE|GCP|ARM|DATABRICKS|VAULT)_|CONNECTION_STRING|DSN$|DATABASE_URL|COOKIE",
    re.IGNORECASE,
)

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class StartFailed(Exception):
    """Ray did not come up; another attempt may."""


@contextmanager
def private_ray(init: Callable[[dict[str, Any]], Any], *, opens_buckets: bool = False) -> Iterator[None]:
    """Start a Ray of this process alone, and stop it when the block ends.

    It listens on loopback only. Its logs, sockets and token are in a folder that only this user can enter; it is
    removed at the end, unless Ray can't be started. Its processes get no secrets of this process's environment, except
    what opens a store in a bucket where they have to.

    Args:
        init: calls `ray.init(address="local", ...)` with the arguments that it is given.
        opens_buckets: whether processes of this Ray open a store in a bucket.

    Raises:
        ClusterError: it can't be started.
    """
    folder = private_folder()
    own = {"_temp_dir": str(folder / "r")}  # Ray opens the folder that it is given to everybody
    with _own_token(folder):
        _start(lambda: init(own), opens_buckets)
        try:
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def private_folder() -> Path:
    """Create a folder that only this user can enter, with a path that is short enough for Ray's sockets.

    Raises:
        ClusterError: there is no place for it.
    """
    places = [place for place in (os.environ.get("RAY_TMPDIR"), tempfile.gettempdir(), *PLACES) if place]
    faults = []
    for place in dict.fromkeys(os.path.abspath(place) for place in places):  # noqa: PTH100 - keeps links short
        if len(os.fsencode(place)) + len("/rs-12345678/r") > MAX_FOLDER_BYTES:
            faults.append(f"{place}: its path is too long for sockets in it")
            continue
        try:
            return Path(tempfile.mkdtemp(prefix="rs-", dir=place))
        except OSError as error:
            faults.append(f"{place}: {error.strerror}")
    raise ClusterError(
        f"Ray can't be started on this machine: expected a temporary folder that can be written, found none "
        f"({'; '.join(faults)}); set RAY_TMPDIR to one"
    )


@contextmanager
def _without_secrets(opens_buckets: bool = False) -> Iterator[None]:
    """Hide the secrets in the environment from the processes that are started within the block."""
    kept = _OF_BUCKETS if opens_buckets else ()
    is_secret = {name: bool(_SECRET.search(name)) and not name.startswith(kept) for name in os.environ}
    secret = {name: os.environ[name] for name in is_secret if is_secret[name] and name not in TOKEN_VARIABLES}
    for name in secret:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(secret)


def _start(init: Callable[[], Any], opens_buckets: bool) -> None:
    for attempt, pause_s in enumerate((*PAUSES_S, None), start=1):
        try:
            with _replaced("Node", WatchedNode), _without_secrets(opens_buckets):
                init()
            return
        except StartFailed as failure:
            ray.shutdown()
            if pause_s is None:
                raise ClusterError(
                    f"Ray can't be started on this machine, tried {attempt} times: {failure}; free memory and CPUs, or "
                    "set RAY_ADDRESS to a cluster that runs"
                ) from None
            logger.warning("Ray did not start: %s; trying again in %g s", failure, pause_s)
            time.sleep(pause_s)
        except Exception as error:  # Ray raises plain ones, too
            ray.shutdown()
            raise ClusterError(f"Ray can't be started on this machine: {describe_failure(error)}") from error


class WatchedNode(ray_node.Node):
    """A head node on loopback whose start ends as soon as its GCS or raylet dies, and that waits for no agents."""

    def __init__(self, ray_params: Any, *args: Any, **keywords: Any):
        # `ray.init(_node_ip_address="127.0.0.1")` would take the address that others reach this machine at.
        ray_params.node_ip_address = LOOPBACK
        super().__init__(ray_params, *args, **keywords)

    def start_gcs_server(self) -> None:
        """Start the GCS.

        Raises:
            StartFailed: it died, or did not publish its port in time.
        """

        def wait_for_port(*where: Any, timeout_ms: int = GCS_PORT_MS) -> Any:
            give_up_s = time.monotonic() + timeout_ms / 1000
            while True:
                try:
                    return wait_for_persisted_port(*where, timeout_ms=500)
                except RuntimeError:
                    self._check_processes()
                    if time.monotonic() > give_up_s:
                        raise StartFailed(f"its GCS had no port after {timeout_ms / 1000:.0f} s") from None

        with self._stopped_if_it_fails(), _replaced("wait_for_persisted_port", wait_for_port):
            super().start_gcs_server()

    def _init_gcs_client(self) -> None:
        # The client would wait 40 s for a GCS that has died.
        with self._stopped_if_it_fails():
            answer_within(REGISTER_S, super()._init_gcs_client, self._check_processes)

    def start_raylet(self, *args: Any, **keywords: Any) -> None:
        """Start the raylet and wait until the GCS knows it.

        Raises:
            StartFailed: it died, or did not register in time.
        """
        # The raylet waits 15 s at most for the file of each port. None of these three serves a Ray without a dashboard.
        for port in UNUSED_PORTS:
            persist_port(self.get_session_dir_path(), self._node_id, port, -1)
        self._ray_params.runtime_env_agent_port = _free_port()
        with self._stopped_if_it_fails():
            super().start_raylet(*args, **keywords)
            give_up_s = time.monotonic() + REGISTER_S
            while not self._is_registered():
                self._check_processes()
                if time.monotonic() > give_up_s:
                    raise StartFailed(f"its raylet did not register within {REGISTER_S:.0f} s; see {self._logs_dir}")
                time.sleep(0.1)

    def _is_registered(self) -> bool:
        try:
            known = self.get_gcs_client().get_all_node_info(timeout=2)
        except ray.exceptions.RayError:  # a GCS that is slow, or dead
            return False
        return any(node_id.hex() == self._node_id for node_id in known)

    def _check_processes(self) -> None:
        for name in (ray_constants.PROCESS_TYPE_GCS_SERVER, ray_constants.PROCESS_TYPE_RAYLET):
            for started in self.all_processes.get(name, ()):
                code = started.process.poll()
                if code is not None:
                    raise StartFailed(describe_death(name, code, Path(self._logs_dir)))

    @contextmanager
    def _stopped_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.kill_all_processes(check_alive=False, allow_graceful=False)
            raise


def describe_death(name: str, code: int, logs_dir: Path) -> str:
    """Return in one line how a process of Ray ended and what it logged last.

    Args:
        name: of its log files, `raylet` or `gcs_server`.
        code: its exit code; a negative one is a signal.
    """
    how = f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"
    for path in (logs_dir / f"{name}.err", logs_dir / f"{name}.out"):
        cause = _last_cause(path)
        if cause:
            return f"its {name} died ({how}): {cause} ({path})"
    return f"its {name} died ({how}); its logs in {logs_dir} name no cause"


def _last_cause(path: Path) -> str:
    """Return the last critical line of a log, else its last error, without Ray's preamble."""
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for level in "CE":
        found = [line for line in lines if re.match(rf"\[[^\]]* {level} \d", line)]
        if found:
            message = re.sub(r"^\[[^\]]*\] (\(\w+\) )?\S+:\s*", "", found[-1])
            message = re.sub(r"^.*Check failed: (\S+ )?", "", message)
            return message.strip()[:MAX_CAUSE_CHARACTERS]
    return ""


def answer_within(seconds: float, ask: Callable[[], Answer], check: Callable[[], None] = lambda: None) -> Answer:
    """Return what the call returns; meanwhile call `check`, which may raise.

    Raises:
        TimeoutError: it took longer; its thread is left behind, as calls of Ray's inner parts can't be interrupted.
    """
    answers: queue.Queue[tuple[Answer | None, BaseException | None]] = queue.Queue()

    def run() -> None:
        try:
            answers.put((ask(), None))
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            answers.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    give_up_s = time.monotonic() + seconds
    while True:
        try:
            answer, error = answers.get(timeout=0.1)
            break
        except queue.Empty:
            check()
            if time.monotonic() > give_up_s:
                raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return cast(Answer, answer)


def _free_port() -> int:
    """Return a port that nothing uses now; should another process take it first, Ray's start fails and is repeated."""
    with socket.socket() as found:
        found.bind((LOOPBACK, 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def _own_token(folder: Path) -> Iterator[None]:
    """Use a token that ends with the block, in a file in the folder, unless the user turned tokens off or names one."""
    is_off = os.environ.get("RAY_AUTH_MODE", "token").lower() != "token"
    if is_off or any(os.environ.get(name) for name in TOKEN_VARIABLES):
        yield
        return
    path = folder / "token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32), "ascii")
    with authentication({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}):
        yield


@contextmanager
def authentication(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables of Ray's authentication within the block; a process that has read them rereads them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    _read_authentication()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        _read_authentication()


def _read_authentication() -> None:
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _replaced(name: str, replacement: Any) -> Iterator[None]:
    """Replace a name of Ray's module of nodes within the block."""
    before = getattr(ray_node, name)
    setattr(ray_node, name, replacement)
    try:
        yield
    finally:
        setattr(ray_node, name, before)
