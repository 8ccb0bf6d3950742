"""A real S3 server for tests: moto's, in this process, with one condition checked and met at a time.

moto checks the condition of a write and then writes, which two threads may do at once; a real server does both as one.
And its listings fail where another thread deletes meanwhile.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests
from werkzeug.serving import WSGIRequestHandler, make_server

from raysnap.config.folders import BucketAddress
from raysnap.store.backends.client import Client
from tests.support.places import NUMBERS, NewBucket
from tests.support.s3_faults import Faults

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "a-secret-of-tests", "AWS_REGION": "us-east-1"}
BUCKET = "bucket"


class OneAtATime:
    """A WSGI application that does one request after the other."""

    def __init__(self, app: Callable[..., Iterable[bytes]]):
        self._app, self._lock = app, threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            return list(self._app(environ, start_response))


class QuietHandler(WSGIRequestHandler):
    """Serves without a word, even of connections that were cut."""

    def log(self, *args: Any) -> None:
        pass

    def connection_dropped(self, *args: Any) -> None:
        pass


@contextmanager
def s3_server() -> Iterator[str]:
    """Run a server with an empty bucket, and return its address."""
    with faulty_s3_server() as (address, _):
        yield address


@contextmanager
def faulty_s3_server() -> Iterator[tuple[str, Faults]]:
    """Run a server with an empty bucket; return its address, and the faults that requests are to meet: none yet."""
    from moto.moto_api._internal.models import moto_api_backend
    from moto.moto_server.werkzeug_app import create_backend_app

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = Faults(OneAtATime(create_backend_app("s3")))  # S3 alone: finding out which service is meant takes longer
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=QuietHandler)
    server.socket.listen(4096)  # it closes each connection after one request, and crowds begin many at once
    thread = threading.Thread(target=server.serve_forever, name="s3-server", daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        moto_api_backend.reset()
        requests.put(f"{address}/{BUCKET}", timeout=30).raise_for_status()
        yield address, app
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def environment(address: str) -> dict[str, str]:
    """Return what a process needs in its environment to use the server."""
    return KEYS | {"AWS_ENDPOINT_URL": address}


def new_places_of(address: str, patch: pytest.MonkeyPatch) -> Callable[[], NewBucket]:
    """Return what makes empty prefixes of the server's bucket; this process's environment is set for it."""
    for name, value in environment(address).items():
        patch.setenv(name, value)

    def make() -> NewBucket:
        client = Client.connect(BucketAddress(f"s3://{BUCKET}/place-{next(NUMBERS)}/store"))
        return NewBucket(lambda: client)  # one client for all views: a test has no need of hundreds

    return make
