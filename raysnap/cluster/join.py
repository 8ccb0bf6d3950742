"""Join the cluster of an address, or say in one line, within 30 s, why it can't be joined.

Ray's own client waits 40 s for an address where nothing listens, a minute more on a machine that is no node of the
cluster, and ends the process where a token is missing.
"""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._common.network_utils import parse_address
from ray._common.usage.usage_lib import get_cluster_metadata
from ray._private import services
from ray._private.utils import check_version_info
from ray._raylet import AuthenticationTokenLoader, GcsClient
from ray.core.generated.gcs_pb2 import GcsNodeInfo
from ray.exceptions import AuthenticationError, RayError

from raysnap.cluster.start import answer_within, authentication
from raysnap.errors import ClusterError, describe_failure
from raysnap.humanize import plural

HOW_TO_GET_TOKEN = (
    "put the output of `ray get-auth-token` on the head into ~/.ray/auth_token, or into a file that "
    "RAY_AUTH_TOKEN_PATH names, and set RAY_AUTH_MODE=token"
)

CONNECT_S = 8.0
ANSWER_S = 15.0
NODE_S = 5.0  # a raylet of this machine may be about to register


@contextmanager
def joined_ray(address: str, init: Callable[[str], Any]) -> Iterator[None]:
    """Connect to the cluster of an address, and disconnect when the block ends.

    Args:
        address: of a GCS, `HOST:PORT`, or `auto` for the cluster that this machine is a node of.
        init: calls `ray.init(address, ...)`.

    Raises:
        ClusterError: it can't be joined.
    """
    where = f"RAY_ADDRESS {address}"
    found = _gcs_address(address, where)
    _check_listening(found, where)
    with _fitting_token(found, where):
        try:
            init(found)
        except (OSError, RuntimeError, ValueError, RayError) as error:
            ray.shutdown()
            raise ClusterError(f"{where}: can't be joined: {describe_failure(error)}") from error
        try:
            yield
        finally:
            ray.shutdown()


def _gcs_address(address: str, where: str) -> str:
    """Return the address as host and port."""
    scheme, is_url, _ = address.partition("://")
    if is_url:
        raise ClusterError(
            f"{where}: expected the address of a GCS, such as 10.0.0.1:6379, or `auto`, found one of {scheme}://; a "
            "job runs on a node of its cluster: send it there with `ray job submit`"
        )
    if address == "auto":
        try:
            address = str(services.canonicalize_bootstrap_address(address))
        except ConnectionError:
            raise ClusterError(
                f"{where}: expected a Ray that runs on this machine, found none; start one with `ray start`, or unset "
                "RAY_ADDRESS to run on this machine alone"
            ) from None
    if not (parse_address(address) or ("", ""))[1].isdigit():
        raise ClusterError(f"{where}: expected HOST:PORT, such as 10.0.0.1:6379, or `auto`; correct it")
    return address


def _check_listening(address: str, where: str) -> None:
    host, port = parse_address(address)

    def connect() -> None:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()

    try:
        answer_within(CONNECT_S, connect)
    except (OSError, OverflowError) as error:
        reason = str(error) if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or str(error)
        raise ClusterError(
            f"{where}: expected a Ray cluster, found nothing that can be connected to ({reason}); start the cluster, "
            "correct RAY_ADDRESS, or unset it to run on this machine alone"
        ) from None


@contextmanager
def _fitting_token(address: str, where: str) -> Iterator[None]:
    """Send the user's token within the block where the cluster asks for it and RAY_AUTH_MODE does not forbid it.

    A cluster without tokens can't be sent one: its own calls to a process in that mode lack it, and its actors die.
    """
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode is not None and mode.lower() == "token" and not _has_token():
        raise ClusterError(f"{where}: RAY_AUTH_MODE=token expects a token, found none; {HOW_TO_GET_TOKEN}")
    try:
        _check_cluster(address, where)
    except AuthenticationError:
        if mode is not None or not _has_token():
            found = "another one was sent" if mode is not None and mode.lower() == "token" else "none was sent"
            raise ClusterError(f"{where}: the cluster expects its token, {found}; {HOW_TO_GET_TOKEN}") from None
    else:
        yield
        return
    with authentication({"RAY_AUTH_MODE": "token"}):
        try:
            _check_cluster(address, where)
        except AuthenticationError:
            message = f"{where}: the cluster expects its token, another one was found; {HOW_TO_GET_TOKEN}"
            raise ClusterError(message) from None
        yield


def _has_token() -> bool:
    loader = AuthenticationTokenLoader.instance()
    found: bool = loader.has_token(ignore_auth_mode=True)
    loader.reset_cache()  # with a token in it this process would refuse calls without one, whatever the mode
    return found


def _check_cluster(address: str, where: str) -> None:
    """Check that the cluster answers, has these versions, and has this machine as a node.

    Raises:
        AuthenticationError: it does not accept the token, or the lack of one.
    """
    try:
        client = answer_within(ANSWER_S, lambda: GcsClient(address=address))
        metadata = answer_within(ANSWER_S, lambda: get_cluster_metadata(client))
    except AuthenticationError:
        raise
    except (TimeoutError, RayError) as error:
        raise ClusterError(
            f"{where}: expected the GCS of a Ray cluster, found a server that does not answer as one "
            f"({describe_failure(error)}); correct RAY_ADDRESS: the port of a GCS is 6379 unless it was chosen"
        ) from None
    try:
        check_version_info(metadata, "this process")
    except RuntimeError:
        raise ClusterError(
            f"{where}: expected Ray {ray.__version__} on Python {platform.python_version()} as here, found Ray "
            f"{metadata['ray_version']} on Python {metadata['python_version']}; install the same versions on every node"
        ) from None
    _check_is_node(client, where)


def _check_is_node(client: GcsClient, where: str) -> None:
    give_up_s = time.monotonic() + NODE_S
    while True:
        nodes = client.get_all_node_info(timeout=ANSWER_S).items()
        alive = {node_id.hex() for node_id, node in nodes if node.state == GcsNodeInfo.GcsNodeState.ALIVE}
        if alive & set(services.find_node_ids()):
            return
        if time.monotonic() > give_up_s:
            raise ClusterError(
                f"{where}: expected this machine to be a node of the cluster, found it is none of its "
                f"{plural(len(alive), 'node')}; send the job to one with `ray job submit`"
            )
        time.sleep(0.5)
