"""Faults between a client and an S3 server: answers cut after the server wrote, delays, refusals, short answers."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
WRITES = ("PUT", "POST", "DELETE")
ANSWERS = {
    "403": ("403 Forbidden", "AccessDenied"),
    "409": ("409 Conflict", "ConditionalRequestConflict"),
    "412": ("412 Precondition Failed", "PreconditionFailed"),  # of conditional writes alone
    "503": ("503 Service Unavailable", "SlowDown"),
    "507": ("507 Insufficient Storage", "QuotaExceeded"),
}
DELAY_S = 0.2


def error_body(fault: str) -> bytes:
    """Return what a server says that refuses a request."""
    return f"<Error><Code>{ANSWERS[fault][1]}</Code><AWSAccessKeyId>testing</AWSAccessKeyId></Error>".encode()


class Faults:
    """An S3 server with faults in front of it.

    Attributes:
        choose: says which fault a request meets, if any; None is none.
        seen: how many requests met each fault.
    """

    def __init__(self, app: Wsgi):
        self._app = app
        self.choose: Callable[[str, str], str | None] = lambda method, path: None
        self.seen: Counter[str] = Counter()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        fault = self.choose(method, path)
        if fault == "412" and not {"HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"} & environ.keys():
            fault = None
        if fault is None:
            return self._app(environ, start_response)
        self.seen[fault] += 1
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)) if fault in ANSWERS else None
        if fault in ANSWERS:
            body = error_body(fault)
            start_response(ANSWERS[fault][0], [("Content-Length", str(len(body))), ("Content-Type", "application/xml")])
            return [body]
        if fault == "delay":
            time.sleep(DELAY_S)
            return self._app(environ, start_response)
        if fault == "cut before":
            return self._cut(environ)
        answer: list[Any] = []
        body = b"".join(self._app(environ, lambda *given: answer.extend(given)))
        if fault == "cut after":
            return self._cut(environ)
        assert fault == "short", fault
        start_response(*answer[:2])
        environ["werkzeug.request"] = None
        return self._shortened(environ, body)

    @staticmethod
    def _cut(environ: dict[str, Any]) -> Iterable[bytes]:
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError("cut")

    @staticmethod
    def _shortened(environ: dict[str, Any], body: bytes) -> Iterable[bytes]:
        yield body[: len(body) // 2]
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)


def at_random(share: float, kinds: list[str], seed: int = 0) -> Callable[[str, str], str | None]:
    """Let a share of requests meet one of these faults."""
    rng, lock = random.Random(seed), threading.Lock()

    def choose(method: str, path: str) -> str | None:
        with lock:
            if rng.random() >= share:
                return None
            kind = rng.choice(kinds)
        if kind == "409" and method != "PUT":
            return None
        return "delay" if kind == "short" and method != "GET" else kind

    return choose
