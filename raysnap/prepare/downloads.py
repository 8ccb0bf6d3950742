"""Download published files over https: each appears whole and with the right digest, or not at all.

What has arrived is kept in `<name>.part`, with what the server said about it beside, so an interruption loses nothing:
the next attempt requests the rest, on condition that the file has not changed. A file without a published digest is
pinned by its sha256 when first seen (`<name>.pin.json`) and must stay the same from then on.
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
    """How long to wait for a server, and how much to take from it.

    Attributes:
        connect_s: limit for a connection.
        read_s: limit for the next bytes of an answer.
        window_s: period in which at least `window_bytes` must arrive, so that a trickle ends too.
        stall_s: limit over all attempts until `window_bytes` more have arrived than ever before.
        num_attempts: limit of consecutive attempts that brought less than `window_bytes`; more resets the count.
        backoff_s: pause after the first failed attempt; each further one doubles it.
        max_backoff_s: the longest pause, whatever the server asks for.
        max_bytes: limit of a file's size.
        max_redirects: limit of redirects in a row.
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
    """An attempt failed, but another one may succeed; `wait_s` is how long the server asks to wait."""

    def __init__(self, found: str, wait_s: float = 0.0):
        super().__init__(found)
        self.wait_s = wait_s


def download_dataset(
    name: str, data_dir: Path, on_progress: OnProgress | None = None, patience: Patience | None = None
) -> Path:
    """Download all published files of a named dataset; return their folder, `data_dir/.downloads/<name>`.

    Raises:
        DataError: it is not a named dataset, is not published over https, or a file could not be downloaded.
    """
    source = SOURCES.get(name)
    if source is None:
        raise DataError(f"dataset {name!r}: expected a published dataset, one of {', '.join(SOURCES)}")
    if not source.is_downloadable:
        raise DataError(
            f"dataset {name!r}: expected files that are published over https, found none; "
            f"get {', '.join(file.name for file in source.files)} from {source.page} and pass --source PATH"
        )
    folder = data_dir / DOWNLOADS_DIR_NAME / name
    for file in source.files:
        try:
            download(file, folder, on_progress, patience)
        except DataError as error:
            raise DataError(f"{error}; or download it yourself from {source.page} and pass --source PATH") from None
    return folder


def download(
    file: SourceFile, folder: Path, on_progress: OnProgress | None = None, patience: Patience | None = None
) -> Path:
    """Download a file into `folder` unless it is there, with the published or the pinned digest; return its path.

    Any number of processes may call this for one file at once: one downloads it, the others wait.

    Raises:
        DataError: the file can't be downloaded or written, or is not the expected one; a partial file is kept for the
            next call unless its digest is wrong.
    """
    if file.url is None:
        raise DataError(f"{file.name}: expected an https address, found none published")
    fetch = _Fetch(file, file.url, folder, on_progress, patience or Patience())
    try:
        if fetch.is_complete():
            return fetch.path
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(fetch.part_path) as part:
            if not fetch.is_complete():
                fetch.get(part)
                fetch.publish()
    except OSError as error:
        raise _unwritable(fetch.path, error) from error
    return fetch.path


class _Fetch:
    """The download of one file into a folder, for as long as its lock is held."""

    def __init__(self, file: SourceFile, url: str, folder: Path, on_progress: OnProgress | None, patience: Patience):
        self.file = file
        self.url = url
        self.path = folder / file.name
        self.part_path = folder / f"{file.name}.part"
        self._state_path = folder / f"{file.name}.part.json"
        self._pin_path = folder / f"{file.name}.pin.json"
        self._on_progress = on_progress
        self._patience = patience
        self._reported_bytes = -1
        self._progressed_s = 0.0

    def is_complete(self) -> bool:
        """Return whether the finished file exists and is the right one; pin it where no digest is known."""
        if not self.path.is_file():
            return False
        expected = self._expected_digest()
        found = _digest_of(self.path, expected.partition(":")[0] if expected else "sha256")
        if expected is None:
            self._pin(found, self.path.stat().st_size)
        elif found != expected:
            log.warning("%s: expected %s, found %s; downloading it again", self.path, expected, found)
            return False
        return True

    def get(self, part: BinaryIO) -> None:
        """Fill the partial file, in as many attempts as it takes.

        Raises:
            DataError: the server refuses, or too many consecutive attempts brought nothing.
        """
        patience, num_failed, max_seen_bytes = self._patience, 0, os.fstat(part.fileno()).st_size
        self._progressed_s = time.monotonic()
        with requests.Session() as session:
            while True:
                try:
                    return self._attempt(session, part)
                except _PassingFault as fault:
                    num_bytes, num_failed = os.fstat(part.fileno()).st_size, num_failed + 1
                    if num_bytes >= max_seen_bytes + patience.window_bytes:
                        self._progressed_s, num_failed, max_seen_bytes = time.monotonic(), 1, num_bytes
                    wait_s = min(max(patience.backoff_s * 2 ** (num_failed - 1), fault.wait_s), patience.max_backoff_s)
                    if num_failed >= patience.num_attempts or self._rest_s() <= wait_s:
                        kept = (
                            f"; {bytes_text(num_bytes)} are kept and the next call resumes there"
                            if num_bytes and self._read_state()
                            else ""
                        )
                        raise DataError(
                            f"{self.url}: expected the file, found {fault} ({plural(num_failed, 'attempt')} in a "
                            f"row); try again later{kept}"
                        ) from None
                    log.warning("%s: found %s; trying again in %.0f s", self.url, fault, wait_s)
                    time.sleep(wait_s)

    def publish(self) -> None:
        """Make the partial file the finished one if its digest, read back from the disk, is right.

        Raises:
            DataError: the digest is wrong; the partial file is removed.
        """
        expected = self._expected_digest()
        found = _digest_of(self.part_path, expected.partition(":")[0] if expected else "sha256")
        if expected is not None and found != expected:
            self._forget()
            self.part_path.unlink()
            pinned = (
                "" if self.file.digest else f" (pinned; if the file was replaced on purpose, delete {self._pin_path})"
            )
            raise DataError(
                f"{self.url}: expected {expected}{pinned}, found {found}; the download was deleted, try again"
            )
        if expected is None:
            self._pin(found, self.part_path.stat().st_size)
        self.part_path.replace(self.path)
        sync_dir(self.path.parent)
        self._forget()

    def _attempt(self, session: requests.Session, part: BinaryIO) -> None:
        """Request the missing bytes and write them; return when the file is complete."""
        part.seek(0, os.SEEK_END)
        state = self._read_state() if part.tell() else None
        headers = {"Accept-Encoding": "identity"}  # lengths and ranges must be those of the file itself
        if state:
            headers |= {"Range": f"bytes={part.tell()}-", "If-Range": state["validator"]}
        try:
            with self._open(session, headers) as response:
                if response.status_code == 416 or (
                    response.status_code == 206 and not _continues(response, part, state)
                ):
                    self._forget()
                    part.truncate(0)
                    raise _PassingFault("another file than the one that was started")
                if response.status_code != 206:
                    part.seek(0)
                    part.truncate()
                self._receive(response, part)
        except (requests.exceptions.RequestException, HTTPError) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise DataError(
                    f"{self.url}: expected a certificate that this machine trusts, found another; "
                    f"behind a proxy, set REQUESTS_CA_BUNDLE to its certificates"
                ) from None
            raise _PassingFault(self._reason(error)) from None

    @contextmanager
    def _open(self, session: requests.Session, headers: dict[str, str]) -> Iterator[requests.Response]:
        """Send the request and follow redirects over https; yields the final answer."""
        url, patience = self.url, self._patience
        for _ in range(patience.max_redirects + 1):
            _refuse_unsafe(url, self.url)
            with self._answer(session, url, headers) as response:
                if not (response.is_redirect or response.is_permanent_redirect):
                    _refuse_status(response)
                    yield response
                    return
                url = urljoin(url, response.headers["location"])
        raise DataError(f"{self.url}: expected the file, found more than {patience.max_redirects} redirects")

    def _answer(self, session: requests.Session, url: str, headers: dict[str, str]) -> requests.Response:
        """Request one address; return once the header of its answer is there.

        A socket's timeout restarts with each byte, so another thread waits for a header that trickles.
        """
        rest_s = self._rest_s()
        timeout_s = (min(self._patience.connect_s, rest_s), min(self._patience.read_s, rest_s))
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
        """Return how much longer nothing may arrive: at least a moment, since a timeout can't be 0."""
        return max(self._patience.stall_s - (time.monotonic() - self._progressed_s), 0.1)

    def _receive(self, response: requests.Response, part: BinaryIO) -> None:
        num_bytes, total_bytes = part.tell(), None
        if response.headers.get("content-length", "").isdecimal():
            total_bytes = num_bytes + int(response.headers["content-length"])
        self._refuse_unverifiable(response, total_bytes)
        self._refuse_large(total_bytes or num_bytes)
        self._refuse_full_disk((total_bytes or num_bytes) - num_bytes)
        self._write_state(_validator(response))
        window_started_s, window_bytes = time.monotonic(), 0
        try:
            while chunk := response.raw.read1(CHUNK_BYTES, decode_content=False):
                part.write(chunk)
                num_bytes += len(chunk)
                window_bytes += len(chunk)
                self._refuse_large(num_bytes)
                self._report(num_bytes, total_bytes)
                if time.monotonic() - window_started_s > self._patience.window_s:
                    if window_bytes < self._patience.window_bytes:
                        raise _PassingFault(
                            f"{bytes_text(window_bytes)} within {self._patience.window_s:.0f} s, which is too slow"
                        )
                    window_started_s, window_bytes = time.monotonic(), 0
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
        """Raise DataError for an answer that would be pinned but may be a login page or a piece of the file."""
        if self._expected_digest() is not None:
            return
        if response.headers.get("content-type", "").startswith("text/html"):
            raise DataError(f"{self.url}: expected the file, found a web page; open it in a browser to see why")
        if total_bytes is None and not response.raw.chunked:
            raise DataError(f"{self.url}: expected an answer with a known length, found one without")

    def _refuse_large(self, num_bytes: int) -> None:
        if num_bytes > self._patience.max_bytes:
            raise DataError(
                f"{self.url}: expected at most {bytes_text(self._patience.max_bytes)}, found more "
                f"({bytes_text(num_bytes)}); this can't be the right file"
            )

    def _refuse_full_disk(self, num_bytes: int) -> None:
        free_bytes = shutil.disk_usage(self.path.parent).free
        if num_bytes + FREE_BYTES > free_bytes:
            raise OSError(
                errno.ENOSPC, f"{bytes_text(num_bytes + FREE_BYTES)} are needed, {bytes_text(free_bytes)} are free"
            )

    def _report(self, num_bytes: int, total_bytes: int | None) -> None:
        """Report progress in few enough steps for a log."""
        step_bytes = PROGRESS_FRACTION * total_bytes if total_bytes else 50e6
        is_last = num_bytes == total_bytes
        if self._on_progress and (is_last or abs(num_bytes - self._reported_bytes) >= step_bytes):
            self._reported_bytes = num_bytes
            unit, unit_bytes = bytes_unit(total_bytes or num_bytes)
            self._on_progress(
                self.file.name, round(num_bytes / unit_bytes), round((total_bytes or num_bytes) / unit_bytes), unit
            )

    def _reason(self, error: Exception) -> str:
        """Say in a few words what went wrong on the network."""
        if isinstance(error, requests.exceptions.ConnectTimeout):
            return f"no connection within {self._patience.connect_s:g} s"
        if isinstance(error, requests.exceptions.Timeout | ReadTimeoutError):
            return f"no answer within {self._patience.read_s:g} s"
        if "NameResolutionError" in str(error):
            return f"no address of {urlsplit(self.url).hostname} (check the network)"
        if isinstance(error, requests.exceptions.ProxyError):
            return "a proxy that does not connect (check HTTPS_PROXY)"
        if "refused" in str(error):
            return "a refused connection"
        return "a broken connection"

    def _expected_digest(self) -> str | None:
        """Return the published digest, or else the pinned one, if any."""
        return self.file.digest or (_read_json(self._pin_path) or {}).get("digest")

    def _pin(self, digest: str, num_bytes: int) -> None:
        _write_json(self._pin_path, {"url": self.url, "digest": digest, "num_bytes": num_bytes})

    def _read_state(self) -> dict[str, Any] | None:
        """Return what the server said about the file that was started; None where that can't be resumed."""
        state = _read_json(self._state_path)
        return state if state and state.get("url") == self.url and state.get("validator") else None

    def _write_state(self, validator: str | None) -> None:
        _write_json(self._state_path, {"url": self.url, "validator": validator})

    def _forget(self) -> None:
        self._state_path.unlink(missing_ok=True)


def _refuse_unsafe(url: str, first_url: str) -> None:
    """Raise DataError unless the address is https; only files published on this machine may use http."""
    to, first = urlsplit(url), urlsplit(first_url)
    is_local = all(part.scheme == "http" and part.hostname in LOOPBACK_HOSTS for part in (to, first))
    if to.scheme != "https" and not is_local:
        where = first_url if url == first_url else f"{first_url}: redirected to {url}"
        raise DataError(
            f"{where}: expected an https address, found {to.scheme or 'none'}; nothing was requested from it"
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
    """Return whether a partial answer is the rest of the same file, however the server treats If-Range."""
    starts_here = response.headers.get("content-range", "").startswith(f"bytes {part.tell()}-")
    return state is not None and starts_here and _validator(response) in (None, state["validator"])


def _validator(response: requests.Response) -> str | None:
    """Return what identifies this version of the file: a strong ETag, or its last modification."""
    etag = response.headers.get("etag", "")
    return etag if etag.startswith('"') else response.headers.get("last-modified")


@contextmanager
def _locked(part_path: Path) -> Iterator[BinaryIO]:
    """Open the partial file, creating it if needed, and lock it; the kernel unlocks it if this process dies."""
    while True:
        with os.fdopen(os.open(part_path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as part:
            try:
                fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.warning("%s: waiting for another process that downloads it", part_path)
                fcntl.flock(part, fcntl.LOCK_EX)
            # The last holder may have renamed or removed the file; then this lock guards nothing.
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
    """Return the object in a small JSON file; None where there is none."""
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
