"""Published files over https, into a folder: each appears whole and with the right digest, or not at all.

What arrived lies in `<name>.part` beside what the server said of it, so a cut or a Ctrl-C costs nothing that was
fetched: the next attempt asks for the rest, on the condition that the file is still the same. A file whose digest
nobody publishes is pinned by its sha256 at first sight (`<name>.pin.json`) and must be the same ever after.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, BinaryIO
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.exceptions import HTTPError, ReadTimeoutError

from raysnap.atomic import sync_dir, write_atomically
from raysnap.datasets.published import SOURCES, SourceFile
from raysnap.errors import DataError
from raysnap.humanize import bytes_text, bytes_unit, plural
from raysnap.progress import OnProgress

DOWNLOADS_DIR_NAME = ".downloads"
LOOPBACK_HOSTS = frozenset(("127.0.0.1", "::1", "localhost"))
PASSING_STATUSES = frozenset((408, 425, 429))
CHUNK_BYTES = 2**18
FREE_BYTES = 256 * 10**6
PROGRESS_FRACTION = 0.02

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for, and how much is taken from it.

    Attributes:
        connect_s: for a connection.
        read_s: for the next bytes of an answer.
        window_s: over which at least `window_bytes` must arrive, so that a trickle ends too.
        stall_s: in all, over any number of attempts, until `window_bytes` more are there than ever before.
        num_attempts: in a row that brought less than `window_bytes`; one that brought more begins the count anew.
        backoff_s: pause after the first failed attempt; each further one doubles it.
        max_backoff_s: the longest pause, whatever the server asks for.
        max_bytes: no file may be larger.
        max_redirects: followed from one place to the next.
    """

    connect_s: float = 10.0
    read_s: float = 20.0
    window_s: float = 20.0
    window_bytes: int = 2**16
    stall_s: float = 60.0
    num_attempts: int = 5
    backoff_s: float = 1.0
    max_backoff_s: float = 30.0
    max_bytes: int = 20 * 10**9
    max_redirects: int = 5


class _PassingFault(Exception):
    """An attempt failed in a way that another one may not; `wait_s` is how long the server asks to wait."""

    def __init__(self, found: str, wait_s: float = 0.0):
        super().__init__(found)
        self.wait_s = wait_s


def download_dataset(
    name: str, data_dir: Path, on_progress: OnProgress | None = None, patience: Patience | None = None
) -> Path:
    """The folder `data_dir/.downloads/<name>` with all published files of a named dataset, which `data prepare` reads.

    Raises:
        DataError: it is no named dataset, is not to be had over https, or a file of it could not be fetched.
    """
    source = SOURCES.get(name)
    if source is None:
        raise DataError(
            f"dataset {name!r}: expected a dataset that is published somewhere, one of {', '.join(SOURCES)}"
        )
    if not source.is_downloadable:
        raise DataError(
            f"dataset {name!r}: expected files that can be fetched over https, found none published; "
            f"get {', '.join(file.name for file in source.files)} from {source.page} and pass --source PATH"
        )
    folder = data_dir / DOWNLOADS_DIR_NAME / name
    for file in source.files:
        try:
            download(file, folder, on_progress, patience)
        except DataError as error:
            raise DataError(f"{error}; or get it yourself from {source.page} and pass --source PATH") from None
    return folder


def download(
    file: SourceFile, folder: Path, on_progress: OnProgress | None = None, patience: Patience | None = None
) -> Path:
    """The file in `folder`, with the published digest or the pinned one; fetched unless it is there already.

    Any number of processes may ask for one file at once: one fetches it, the others wait for that.

    Raises:
        DataError: it can't be had, is another file than expected, or can't be written; a partial file stays unless
            its digest is wrong, and the next call goes on from there.
    """
    if file.url is None:
        raise DataError(f"{file.name}: expected an https address, found none published")
    fetch = _Fetch(file, folder, on_progress, patience or Patience())
    try:
        if fetch.is_there():
            return fetch.path
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(fetch.part_path) as part:
            if not fetch.is_there():
                fetch.get(part)
                fetch.publish()
    except OSError as error:
        raise _unwritable(fetch.path, error) from error
    return fetch.path


class _Fetch:
    """One file on its way into a folder, for as long as its lock is held."""

    def __init__(self, file: SourceFile, folder: Path, on_progress: OnProgress | None, patience: Patience):
        self.file = file
        self.path = folder / file.name
        self.part_path = folder / f"{file.name}.part"
        self._state_path = folder / f"{file.name}.part.json"
        self._pin_path = folder / f"{file.name}.pin.json"
        self._on_progress = on_progress
        self._patience = patience
        self._reported_bytes = -1
        self._progressed_s = 0.0

    def is_there(self) -> bool:
        """Whether the finished file is there and is the right one."""
        if not self.path.is_file():
            return False
        expected = self._expected_digest()
        found = _digest_of(self.path, expected.partition(":")[0] if expected else "sha256")
        if expected is None:
            self._pin(found, self.path.stat().st_size)
        elif found != expected:
            log.warning("%s: expected %s, found %s; it is fetched anew", self.path, expected, found)
            return False
        return True

    def get(self, part: BinaryIO) -> None:
        """Fill the partial file, in as many attempts as it takes.

        Raises:
            DataError: the server says no, or too many attempts in a row brought nothing.
        """
        patience, num_failed, most_bytes = self._patience, 0, os.fstat(part.fileno()).st_size
        self._progressed_s = time.monotonic()
        with requests.Session() as session:
            while True:
                try:
                    return self._attempt(session, part)
                except _PassingFault as fault:
                    num_bytes, num_failed = os.fstat(part.fileno()).st_size, num_failed + 1
                    if num_bytes >= most_bytes + patience.window_bytes:
                        self._progressed_s, num_failed, most_bytes = time.monotonic(), 1, num_bytes
                    wait_s = min(max(patience.backoff_s * 2 ** (num_failed - 1), fault.wait_s), patience.max_backoff_s)
                    if num_failed >= patience.num_attempts or self._rest_s() <= wait_s:
                        kept = (
                            f"; {bytes_text(num_bytes)} are kept and the next call goes on there"
                            if num_bytes and self._read_state()
                            else ""
                        )
                        raise DataError(
                            f"{self.file.url}: expected the file, found {fault} ({plural(num_failed, 'attempt')} in a "
                            f"row); try again later{kept}"
                        ) from None
                    log.warning("%s: found %s; trying again in %.0f s", self.file.url, fault, wait_s)
                    time.sleep(wait_s)

    def publish(self) -> None:
        """Make the partial file the finished one, after its digest was found right on the disk.

        Raises:
            DataError: the digest is wrong; the partial file is gone.
        """
        expected = self._expected_digest()
        found = _digest_of(self.part_path, expected.partition(":")[0] if expected else "sha256")
        if expected is not None and found != expected:
            self._forget()
            self.part_path.unlink()
            pinned = (
                "" if self.file.digest else f" (seen at first; if it was replaced for good, delete {self._pin_path})"
            )
            raise DataError(
                f"{self.file.url}: expected {expected}{pinned}, found {found}; what was fetched is removed, try again"
            )
        if expected is None:
            self._pin(found, self.part_path.stat().st_size)
        self.part_path.replace(self.path)
        sync_dir(self.path.parent)
        self._forget()

    def _attempt(self, session: requests.Session, part: BinaryIO) -> None:
        """Ask for what is missing and write it; returns when all of it is there."""
        part.seek(0, os.SEEK_END)
        state = self._read_state() if part.tell() else None
        headers = {"Accept-Encoding": "identity"}  # lengths and ranges are to be the file's own
        if state:
            headers |= {"Range": f"bytes={part.tell()}-", "If-Range": state["validator"]}
        try:
            with self._open(session, headers) as response:
                if response.status_code == 416 or (
                    response.status_code == 206 and not _continues(response, part, state)
                ):
                    self._forget()
                    part.truncate(0)
                    raise _PassingFault("another file than the one that was begun")
                if response.status_code != 206:
                    part.seek(0)
                    part.truncate()
                self._receive(response, part)
        except (requests.exceptions.RequestException, HTTPError) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise DataError(
                    f"{self.file.url}: expected a certificate that this machine trusts, found another; "
                    f"REQUESTS_CA_BUNDLE names the certificates of a proxy, if there is one"
                ) from None
            raise _PassingFault(self._reason(error)) from None

    @contextmanager
    def _open(self, session: requests.Session, headers: dict[str, str]) -> Iterator[requests.Response]:
        """The answer to the request, from wherever https leads."""
        url, patience = self.file.url, self._patience
        for _ in range(patience.max_redirects + 1):
            _refuse_unsafe(url, self.file.url)
            with self._answer(session, url, headers) as response:
                if not (response.is_redirect or response.is_permanent_redirect):
                    _refuse_status(response)
                    yield response
                    return
                url = urljoin(url, response.headers["location"])
        raise DataError(f"{self.file.url}: expected the file, found more than {patience.max_redirects} redirects")

    def _answer(self, session: requests.Session, url: str, headers: dict[str, str]) -> requests.Response:
        """The head of the answer of one address.

        A timeout of a socket begins anew with each byte, so a head that trickles is waited for in another thread.
        """
        timeout_s = tuple(min(limit_s, self._rest_s()) for limit_s in (self._patience.connect_s, self._patience.read_s))
        outcomes = SimpleQueue[requests.Response | Exception]()

        def ask() -> None:
            try:
                outcomes.put(session.get(url, headers=headers, timeout=timeout_s, stream=True, allow_redirects=False))
            except (OSError, HTTPError, ValueError) as error:
                outcomes.put(error)

        Thread(target=ask, daemon=True).start()
        try:
            outcome = outcomes.get(timeout=sum(timeout_s))
        except Empty:
            raise _PassingFault(f"no whole answer within {sum(timeout_s):.2g} s") from None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _rest_s(self) -> float:
        """How much longer nothing may arrive; a moment at least, which is what a timeout has to be."""
        return max(self._patience.stall_s - (time.monotonic() - self._progressed_s), 0.1)

    def _receive(self, response: requests.Response, part: BinaryIO) -> None:
        num_bytes, total_bytes = part.tell(), None
        if response.headers.get("content-length", "").isdecimal():
            total_bytes = num_bytes + int(response.headers["content-length"])
        self._refuse_unverifiable(response, total_bytes)
        self._refuse_large(total_bytes or num_bytes)
        self._refuse_full_disk((total_bytes or num_bytes) - num_bytes)
        self._write_state(_validator(response))
        window_began_s, window_bytes = time.monotonic(), 0
        try:
            while chunk := response.raw.read1(CHUNK_BYTES, decode_content=False):
                part.write(chunk)
                num_bytes += len(chunk)
                window_bytes += len(chunk)
                self._refuse_large(num_bytes)
                self._report(num_bytes, total_bytes)
                if time.monotonic() - window_began_s > self._patience.window_s:
                    if window_bytes < self._patience.window_bytes:
                        raise _PassingFault(
                            f"{bytes_text(window_bytes)} within {self._patience.window_s:.0f} s, which is too slow"
                        )
                    window_began_s, window_bytes = time.monotonic(), 0
                    self._refuse_full_disk(0)
        except DataError:
            self._forget()
            part.truncate(0)
            raise
        finally:
            part.flush()
        if total_bytes is not None and num_bytes < total_bytes:
            raise _PassingFault(f"the connection cut at {bytes_text(num_bytes)} of {bytes_text(total_bytes)}")
        if not num_bytes:
            raise _PassingFault("an empty file")
        os.fsync(part.fileno())

    def _refuse_unverifiable(self, response: requests.Response, total_bytes: int | None) -> None:
        """Raises for what would be pinned although it may be no more than a login page or a piece of the file."""
        if self._expected_digest() is not None:
            return
        if response.headers.get("content-type", "").startswith("text/html"):
            raise DataError(f"{self.file.url}: expected the file, found a web page; open it in a browser to see why")
        if total_bytes is None and not response.raw.chunked:
            raise DataError(f"{self.file.url}: expected an answer that says how long it is, found none of its length")

    def _refuse_large(self, num_bytes: int) -> None:
        if num_bytes > self._patience.max_bytes:
            raise DataError(
                f"{self.file.url}: expected at most {bytes_text(self._patience.max_bytes)}, found more "
                f"({bytes_text(num_bytes)}); it is not what it should be"
            )

    def _refuse_full_disk(self, num_bytes: int) -> None:
        free_bytes = shutil.disk_usage(self.path.parent).free
        if num_bytes + FREE_BYTES > free_bytes:
            raise OSError(
                errno.ENOSPC, f"{bytes_text(num_bytes + FREE_BYTES)} are needed, {bytes_text(free_bytes)} are free"
            )

    def _report(self, num_bytes: int, total_bytes: int | None) -> None:
        """Tell of progress in steps that are not too many for a log."""
        step_bytes = PROGRESS_FRACTION * total_bytes if total_bytes else 50e6
        is_last = num_bytes == total_bytes
        if self._on_progress and (is_last or abs(num_bytes - self._reported_bytes) >= step_bytes):
            self._reported_bytes = num_bytes
            unit, unit_bytes = bytes_unit(total_bytes or num_bytes)
            self._on_progress(
                self.file.name, round(num_bytes / unit_bytes), round((total_bytes or num_bytes) / unit_bytes), unit
            )

    def _reason(self, error: Exception) -> str:
        """What went wrong on the network, in a few words."""
        if isinstance(error, requests.exceptions.ConnectTimeout):
            return f"no connection within {self._patience.connect_s:g} s"
        if isinstance(error, requests.exceptions.Timeout | ReadTimeoutError):
            return f"no answer within {self._patience.read_s:g} s"
        if "NameResolutionError" in str(error):
            return f"no address of {urlsplit(self.file.url).hostname}: is this machine online?"
        if isinstance(error, requests.exceptions.ProxyError):
            return "a proxy that gives no connection (HTTPS_PROXY)"
        if "refused" in str(error):
            return "a refused connection"
        return "a connection that broke off"

    def _expected_digest(self) -> str | None:
        """The published digest, or else the one that was pinned at first sight, if any."""
        return self.file.digest or (_read_json(self._pin_path) or {}).get("digest")

    def _pin(self, digest: str, num_bytes: int) -> None:
        _write_json(self._pin_path, {"url": self.file.url, "digest": digest, "num_bytes": num_bytes})

    def _read_state(self) -> dict[str, Any] | None:
        """What the server said of the file that the partial one is the beginning of; None where that is no use."""
        state = _read_json(self._state_path)
        return state if state and state.get("url") == self.file.url and state.get("validator") else None

    def _write_state(self, validator: str | None) -> None:
        _write_json(self._state_path, {"url": self.file.url, "validator": validator})

    def _forget(self) -> None:
        self._state_path.unlink(missing_ok=True)


def _refuse_unsafe(url: str, first_url: str) -> None:
    """Raises unless the address is https; only a file published on this very machine may come over http from it."""
    to, first = urlsplit(url), urlsplit(first_url)
    is_local = all(one.scheme == "http" and one.hostname in LOOPBACK_HOSTS for one in (to, first))
    if to.scheme != "https" and not is_local:
        where = first_url if url == first_url else f"{first_url}: it leads to {url}"
        raise DataError(
            f"{where}: expected an https address, found {to.scheme or 'none'}; it was not asked for anything"
        )


def _refuse_status(response: requests.Response) -> None:
    status = response.status_code
    if status in (200, 206, 416):
        return
    found = f"HTTP {status} {response.reason or ''}".rstrip()
    if status >= 500 or status in PASSING_STATUSES:
        wait = response.headers.get("retry-after", "")
        raise _PassingFault(found, float(wait) if wait.isdecimal() else 0.0)
    raise DataError(f"{response.url}: expected the file, found {found}; it may have moved")


def _continues(response: requests.Response, part: BinaryIO, state: dict[str, Any] | None) -> bool:
    """Whether a partial answer is the rest of the same file, whatever the server made of If-Range."""
    starts_here = response.headers.get("content-range", "").startswith(f"bytes {part.tell()}-")
    return state is not None and starts_here and _validator(response) in (None, state["validator"])


def _validator(response: requests.Response) -> str | None:
    """What tells this version of the file from another: a strong ETag, or when it was last modified."""
    etag = response.headers.get("etag", "")
    return etag if etag.startswith('"') else response.headers.get("last-modified")


@contextmanager
def _locked(part_path: Path) -> Iterator[BinaryIO]:
    """The partial file, made where it is missing, for this process alone; the kernel frees it when its holder dies."""
    while True:
        with os.fdopen(os.open(part_path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as part:
            try:
                fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.warning("%s: another process fetches it; waiting for that", part_path)
                fcntl.flock(part, fcntl.LOCK_EX)
            # Its last holder may have given the file its final name, or removed it; then this lock guards nothing.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(part.fileno()), part_path.stat()):
                    try:
                        yield part
                    finally:
                        _remove_empty(part, part_path)
                    return


def _remove_empty(part: BinaryIO, part_path: Path) -> None:
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(part.fileno()), part_path.stat()) and part_path.stat().st_size == 0:
            part_path.unlink()


def _digest_of(path: Path, algorithm: str) -> str:
    def new() -> Any:
        return hashlib.new(algorithm, usedforsecurity=False)

    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, new).hexdigest()}"


def _read_json(path: Path) -> dict[str, Any] | None:
    """The object in a small JSON file; None where there is none."""
    try:
        document = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def _write_json(path: Path, document: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(document, indent=2) + "\n")


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path}: can't be written: {error.strerror or error}; free space there or choose another data_dir"
    )
