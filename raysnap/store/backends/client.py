"""Requests to a bucket: counted, ended within a bound, and failed in words that name bucket, key, cause and remedy.

The client is obstore. It repeats a request that got no answer, or the answer that the server is busy; what it does not
repeat, conflicts and listings that broke off, is repeated here. So a write may be done and then refused as if another
had come first. Who writes on a condition looks before it believes a refusal.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from raysnap.config.folders import BucketAddress
from raysnap.errors import StoreError, StoreUnreadable
from raysnap.humanize import bytes_text
from raysnap.store.backends.rules import check_rules

if TYPE_CHECKING:
    from datetime import datetime

    from obstore.store import ObjectStore

T = TypeVar("T")

ANSWER_S, RETRIES_S = 30, 60
"""How long one try of a request may take, and until when it is tried again: by obstore, and by `_repeated`."""

PART_BYTES = 8 * 2**20
PIECE_BYTES = 2**18  # what the cache of a core holds, so that copying and hashing it cost little
LIST_PAGE = 1000
DELETES_AT_ONCE = 1000
WRITES = "raysnap-writes"
_MISSING_EXTRA = "stores in buckets need the package obstore: pip install 'raysnap[s3]'"
_STATUS, _CODE = re.compile(r"status code: (\d{3}[ A-Za-z]*)"), re.compile(r"<Code>(\w{1,60})</Code>")
_FULL = "there is no room left; delete what nothing needs (`raysnap store gc`) or raise the quota"
_BUSY = "the server is busy; try again later, with fewer processes"
_HINTS = {  # by what is in the answer's status or code, the codes first
    "NoSuchBucket": "there is no such bucket; create it, or check its name, AWS_REGION and AWS_ENDPOINT_URL",
    "SlowDown": _BUSY,
    "Quota": _FULL,
    "Full": _FULL,
    "401": "the credentials are missing, wrong or expired; see `docs/buckets.md`",
    "403": "these credentials may not do this; a store that they can't write can be read and searched",
    "301": "the bucket is in another region; set AWS_REGION",
    "400": "the server refuses the request; check AWS_REGION, AWS_ENDPOINT_URL and the credentials",
    "503": _BUSY,
    "507": _FULL,
}


class ConditionFailed(Exception):
    """A write on a condition was refused; it may have been done all the same, by an earlier try of the same request."""


@dataclass
class Requests:
    """What was asked of a bucket, by kind, and the bytes of documents and objects moved; retries are not counted."""

    num_get: int = 0
    num_head: int = 0
    num_list: int = 0
    num_put: int = 0
    num_delete: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, **counts: int) -> None:
        """Add to counts by name."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def to_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        names = ("num_get", "num_head", "num_list", "num_put", "num_delete", "read_bytes", "written_bytes")
        return {name: getattr(self, name) for name in names}


_ASKED: dict[str, Requests] = {}  # by this process and for it, of each address


def take_requests() -> dict[str, dict[str, int]]:
    """Return what this process asked of each bucket since the last call, for another process to add to its own."""
    return {address: _ASKED.pop(address).to_dict() for address in list(_ASKED)}


def add_requests(asked: Mapping[str, Mapping[str, int]]) -> None:
    """Count what another process asked of each bucket on behalf of this one."""
    for address, counts in asked.items():
        _ASKED.setdefault(address, Requests()).add(**counts)


def request_lines() -> list[str]:
    """Return what this process and those that worked for it asked of each bucket so far, a line each."""
    return [
        f"{address}: {one.num_get} GET, {one.num_head} HEAD, {one.num_list} LIST, {one.num_put} PUT and "
        f"{one.num_delete} DELETE requests, {bytes_text(one.read_bytes)} read, {bytes_text(one.written_bytes)} written"
        for address, one in _ASKED.items()
    ]


class Found(NamedTuple):
    """One object in a listing, with its key."""

    key: str
    num_bytes: int
    written_ns: int
    e_tag: str


class Answer(NamedTuple):
    """What a document is at one moment."""

    content: bytes
    e_tag: str
    writes: tuple[str, ...]


class Client:
    """The objects below one prefix of a bucket."""

    def __init__(self, address: BucketAddress, store: ObjectStore):
        self.address = address
        self.requests = Requests()
        self.check_rules: Callable[[], None] = lambda: None  # of a server's bucket; what is in memory has none
        self._store = store

    @classmethod
    def connect(cls, address: BucketAddress) -> Client:
        """Return a client with the credentials, region and endpoint that the environment gives: see `docs/buckets.md`.

        Raises:
            StoreError: obstore is not installed, or the address or a setting is unusable.
        """
        try:
            from obstore.exceptions import BaseError
            from obstore.store import from_url
        except ImportError:
            raise StoreError(f"{address}: {_MISSING_EXTRA}") from None
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        config: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
        options: dict[str, Any] = {"timeout": timedelta(seconds=ANSWER_S), "connect_timeout": timedelta(seconds=10)}
        options["allow_http"] = bool(endpoint and endpoint.startswith("http://"))
        retries: dict[str, Any] = {"max_retries": 8, "retry_timeout": timedelta(seconds=RETRIES_S)}
        retries["backoff"] = {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=8), "base": 2}
        try:
            store = from_url(
                address, config=config, client_options=options, retry_config=retries,
                credential_provider=_credentials(),
            )  # type: ignore[call-overload]  # fmt: skip
        except (BaseError, ValueError) as error:
            raise StoreError(f"{address}: can't be opened: {cause_of(error)}") from None
        client = cls(address, store)
        client.check_rules = partial(check_rules, address)
        return client

    def _count(self, **counts: int) -> None:
        self.requests.add(**counts)
        _ASKED.setdefault(self.address, Requests()).add(**counts)

    # Reading

    def get(self, key: str, max_bytes: int) -> Answer:
        """Return a document, but at most one byte more than `max_bytes`; FileNotFoundError where there is none."""
        import obstore

        def ask() -> Answer:
            found = obstore.get(self._store, key)
            if found.meta["size"] > max_bytes + 1:
                content = bytes(obstore.get_range(self._store, key, start=0, length=max_bytes + 1))
            else:
                content = bytes(found.bytes())
            self._count(num_get=1, read_bytes=len(content))
            return Answer(content, found.meta["e_tag"] or "", tuple(str(found.attributes.get(WRITES, "")).split()))

        with self._reading(key):
            return _repeated(ask)

    def get_part(self, key: str, start: int, num_bytes: int) -> tuple[memoryview, int]:
        """Return a part of an object, shorter at its end, and the length of the whole."""
        import obstore

        def ask() -> tuple[memoryview, int]:
            found = obstore.get(self._store, key, options={"range": (start, start + num_bytes)})
            content = memoryview(found.bytes())
            self._count(num_get=1, read_bytes=len(content))
            return content, found.meta["size"]

        with self._reading(key):
            return _repeated(ask)

    def read_part(self, key: str, start: int, num_bytes: int, take: Callable[[int, Iterable[memoryview]], T]) -> T:
        """Hand a part of an object to `take`, piece by piece as it arrives, and return what that returns.

        Args:
            take: called with the length of the whole object and the pieces; once more, where an answer breaks off.
        """
        import obstore

        def ask() -> T:
            found = obstore.get(self._store, key, options={"range": (start, start + num_bytes)})
            whole = found.meta["size"]
            taken = take(whole, map(memoryview, found.stream(min_chunk_size=PIECE_BYTES)))
            self._count(num_get=1, read_bytes=min(num_bytes, whole - start))
            return taken

        with self._reading(key):
            return _repeated(ask)

    def head(self, key: str) -> Found | None:
        """Return what is known of an object; None where there is none."""
        import obstore

        self._count(num_head=1)
        with suppress(FileNotFoundError), self._reading(key):
            return _found(obstore.head(self._store, key))
        return None

    def list_below(self, prefix: str) -> list[Found]:
        """Return all objects below a folder; `""` is everything."""
        import obstore

        def ask() -> list[Found]:
            pages = obstore.list(self._store, prefix or None, chunk_size=LIST_PAGE)
            return [_found(one) for page in pages for one in page]

        with self._reading(prefix):
            found = _repeated(ask)
        self._count(num_list=max(1, -(-len(found) // LIST_PAGE)))
        return found

    def list_top(self) -> list[Found]:
        """Return the objects directly below the prefix."""
        import obstore

        self._count(num_list=1)
        with self._reading(""):
            return [_found(one) for one in _repeated(lambda: obstore.list_with_delimiter(self._store))["objects"]]

    # Writing

    def put(self, key: str, content: bytes | memoryview) -> None:
        """Write an object whole, in the place of any that is there; in parts where it is long."""
        import obstore

        with self._writing(key):
            _repeated(lambda: obstore.put(self._store, key, content, mode="overwrite", chunk_size=PART_BYTES))
        self._count(num_put=1, written_bytes=len(content))

    def put_if(self, key: str, content: bytes, e_tag: str | None, write: str, writes: Sequence[str] = ()) -> None:
        """Write a document if none is there, or if the one there has this ETag.

        Args:
            write: a name for this write, kept with the document before those of the `writes` that led to it.

        Raises:
            ConditionFailed: the server says that the condition does not hold.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        self._count(num_put=1, written_bytes=len(content))
        with self._writing(key):
            try:
                _repeated(
                    lambda: obstore.put(
                        self._store,
                        key,
                        content,
                        attributes={WRITES: " ".join((write, *writes))},
                        mode="create" if e_tag is None else {"e_tag": e_tag},
                        use_multipart=False,
                    )
                )
            except (AlreadyExistsError, PreconditionError, FileNotFoundError) as error:
                if "NoSuchBucket" in str(error):
                    raise
                raise ConditionFailed from None

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, those that are there."""
        import obstore

        for start in range(0, len(keys), DELETES_AT_ONCE):
            batch = list(keys[start : start + DELETES_AT_ONCE])
            self._count(num_delete=1)
            with self._writing(batch[0]), suppress(FileNotFoundError):
                _repeated(partial(obstore.delete, self._store, batch))

    # Errors

    def where(self, key: str = "") -> str:
        """Return how messages name a key."""
        return f"{self.address}/{key}" if key else str(self.address)

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError, ValueError) as error:
            # What goes while its answer is asked for again is missing by another class of error.
            is_missing = isinstance(error, FileNotFoundError) or "<Code>NoSuchKey</Code>" in str(error)
            if is_missing and "NoSuchBucket" not in str(error):
                raise FileNotFoundError(self.where(key)) from None
            raise StoreUnreadable(f"{self.where(key)}: can't be read: {cause_of(error)}") from None

    @contextmanager
    def _writing(self, key: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError, ValueError) as error:
            raise StoreError(f"{self.where(key)}: can't be written: {cause_of(error)}; the store is intact") from None


def _repeated(ask: Callable[[], T]) -> T:
    """Return the answer to a request, repeated while it meets conflicts (409) or its answer breaks off."""
    from obstore.exceptions import BaseError

    give_up_s, pause_s = time.monotonic() + RETRIES_S, 0.1
    while True:
        try:
            return ask()
        except BaseError as error:
            text = str(error)
            is_passing = "status code: 409" in text or "response body error" in text
            if not is_passing or time.monotonic() + pause_s > give_up_s:
                raise
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 8.0)


def cause_of(error: BaseException) -> str:
    """Return in words what a request failed of, and what to do.

    Only the status and code of the answer are told: its text and the request's may name credentials.
    """
    text = str(error)
    lower = text.lower()
    if "169.254.169.254" in text:  # asked for credentials where the environment has none
        return "no credentials were found; see `docs/buckets.md`"
    status, code = _STATUS.search(text), _CODE.search(text)
    kind = type(error).__name__
    said = " ".join(found[1].strip() for found in (status, code) if found)
    facts = " ".join([said, "403" * (kind == "PermissionDeniedError"), "401" * (kind == "UnauthenticatedError")])
    hint = next((hint for mark, hint in _HINTS.items() if mark in facts), None)
    if hint is not None:
        return f"{said.strip() or 'refused'}; {hint}"
    if said:
        return f"the server answers {said}; try again, and see the server's log if it stays"
    if "timed out" in lower or "timedout" in lower:
        return f"no answer within {RETRIES_S} seconds; check the network and AWS_ENDPOINT_URL, and try again"
    if "connect" in lower or "dns error" in lower:
        return "the server can't be reached; check the network and AWS_ENDPOINT_URL, and try again"
    if "error sending request" in lower:
        return "the connection broke; check the network and AWS_ENDPOINT_URL, and try again"
    return f"{kind}; try again"


def _credentials() -> Any:
    """Return what finds credentials in profiles and by SSO, where boto3 is installed and the environment has none."""
    if "AWS_ACCESS_KEY_ID" in os.environ or "AWS_WEB_IDENTITY_TOKEN_FILE" in os.environ:
        return None
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return None
    session = boto3.Session()
    return Boto3CredentialProvider(session=session) if session.get_credentials() is not None else None


def _found(one: Any) -> Found:
    written: datetime = one["last_modified"]
    written_ns = int(written.timestamp() * 1e6) * 1000
    return Found(one["path"], one["size"], written_ns, one["e_tag"] or f"{one['size']} {written_ns}")
