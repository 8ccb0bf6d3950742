"""An address where no cluster can be joined is refused in one line, and soon."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from raysnap.cluster import join
from raysnap.errors import ClusterError


@contextmanager
def listening(*, answers: bool) -> Iterator[str]:
    """Yield the address of a server that is no GCS: it says nothing, or ends each connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                kept.append(connection)
                if answers:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in kept:
            connection.close()


def refusal(address: str) -> str:
    """Return what joining the address raises."""
    with pytest.raises(ClusterError) as caught, join.joined_ray(address, lambda found: pytest.fail("it was joined")):
        pytest.fail("it was joined")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://head:10001", "found one of ray://; a job runs on a node of its cluster"),
        ("http://127.0.0.1:8265", "found one of http://; a job runs on a node of its cluster"),
        ("head", "expected HOST:PORT"),
        ("head:6379x", "expected HOST:PORT"),
        ("no-such-host.invalid:6379", "found nothing that can be connected to"),
        ("127.0.0.1:1", r"found nothing that can be connected to \(Connection refused\)"),
        ("127.0.0.1:99999999", "found nothing that can be connected to"),
    ],
)
def test_an_address_of_no_cluster_is_refused(address, said):
    with pytest.raises(ClusterError, match=said), join.joined_ray(address, print):
        pytest.fail("it was joined")


@pytest.mark.parametrize("answers", [False, True])
def test_a_server_that_is_no_gcs_is_refused(monkeypatch, answers):
    monkeypatch.setattr(join, "ANSWER_S", 2.0)
    started_s = time.monotonic()
    with listening(answers=answers) as address:
        assert "found a server that does not answer as one" in refusal(address)
    assert time.monotonic() - started_s < 30


def test_a_token_that_is_asked_for_and_missing_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HOME", str(tmp_path))
    join.AuthenticationTokenLoader.instance().reset_cache()
    with listening(answers=False) as address:
        assert "RAY_AUTH_MODE=token expects a token, found none" in refusal(address)
