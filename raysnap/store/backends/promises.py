"""What a bucket has to keep for a store in it, tried out: conditional writes, listings after writes, parts of objects.

"S3-compatible" servers differ: some take a condition and ignore it. A store there would lose names without a word.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from raysnap.errors import StoreError
from raysnap.store.backends.client import Client, ConditionFailed
from raysnap.store.backends.place import TMP


@dataclass(frozen=True)
class Promise:
    """One thing that a bucket has to keep, and what was found; None where it is kept."""

    name: str
    fault: str | None


def try_promises(client: Client) -> list[Promise]:
    """Return what a bucket keeps, tried out on a few small objects in `tmp/` that are gone afterwards.

    Raises:
        StoreError: it can't be written at all.
    """
    with _scratch(client) as key:
        client.put(key, b"first")
        return [Promise(name, attempt(client, key)) for name, attempt in _PROMISES.items()]


def check_promises(client: Client) -> None:
    """Refuse a bucket that breaks a promise.

    Raises:
        StoreError: it does, or it can't be written.
    """
    broken = [f"{one.name}: {one.fault}" for one in try_promises(client) if one.fault is not None]
    if broken:
        raise StoreError(
            f"{client.where()}: expected a bucket that keeps what a store needs, found {'; '.join(broken)}. A store "
            "there would lose data: use another server, or a newer version of it"
        )


@contextmanager
def _scratch(client: Client) -> Iterator[str]:
    key = f"{TMP}/probe-{secrets.token_hex(8)}"
    try:
        yield key
    finally:
        with suppress(StoreError):
            client.delete([key, f"{key}-new"])


def _is_refused(client: Client, key: str, e_tag: str | None) -> bool:
    try:
        client.put_if(key, b"second", e_tag, "probe")
    except ConditionFailed:
        return True
    return False


def _creates_once(client: Client, key: str) -> str | None:
    if _is_refused(client, f"{key}-new", None):
        return "an object that is not there can't be created (If-None-Match)"
    return None if _is_refused(client, f"{key}-new", None) else "an object is created over another (If-None-Match)"


def _swaps_once(client: Client, key: str) -> str | None:
    before = client.get(key, 100)
    if _is_refused(client, key, before.e_tag):
        return "an object can't be replaced by its own ETag (If-Match)"
    if not _is_refused(client, key, before.e_tag):
        return "an object is replaced by an ETag that it no longer has (If-Match)"
    return None if client.get(key, 100).content == b"second" else "an object that was replaced is still the old one"


def _keeps_ids(client: Client, key: str) -> str | None:
    found = client.get(key, 100).writes
    return None if found == ("probe",) else "what is kept with an object (x-amz-meta-…) is lost"


def _lists_at_once(client: Client, key: str) -> str | None:
    listed = {found.key for found in client.list_below(TMP)}
    if not {key, f"{key}-new"} <= listed:
        return "a listing lacks an object that was written before"
    client.delete([f"{key}-new"])
    is_gone = f"{key}-new" not in {found.key for found in client.list_below(TMP)}
    return None if is_gone else "a listing has an object that was deleted before"


def _reads_parts(client: Client, key: str) -> str | None:
    content, num_bytes = client.get_part(key, 1, 3)
    return None if (bytes(content), num_bytes) == (b"eco", 6) else "a part of an object is not what was asked for"


_PROMISES: dict[str, Callable[[Client, str], str | None]] = {
    "creates once": _creates_once,
    "swaps once": _swaps_once,
    "keeps ids of swaps": _keeps_ids,
    "lists what was written": _lists_at_once,
    "reads parts": _reads_parts,
}
