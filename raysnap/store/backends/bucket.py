"""A store in a bucket: documents and objects under their keys, conditional writes for names, and a `gc` beside writers.

A bucket has no rename and deletes without a condition. So `gc` can't own what it deletes, as it does in a folder; it
says what it is about to delete, and writers wait for that. The steps are those of `garbage`:

  W1. a draft is an object `tmp/draft-…` with the manifest's bytes.
  W2. The writer lists `tmp/` and waits until no `tmp/doomed-…` has a block of its, and then asks for each block.
  W3. It writes the manifest, on the condition that none is there, and removes the draft.

  G1. A `gc` writes the digests of the blocks that it may delete into an object `tmp/doomed-…` of its own,
  G2. reads drafts and manifests once more,
  G3. deletes what none of them needs, and then its `tmp/doomed-…`, once every deletion was answered.

Listings show what was written before they began, so: if the draft was there before G2, `gc` sees it, or the manifest
that it became, and spares its blocks. If it was not, G1 came before W2: the writer waits for the end of G3, and what it
asks for after that is gone for good or stays. A writer who finds a block gone puts it again before W3.

What rests on time. All times are of processes' own clocks (which run on while a machine sleeps) or differences on the
bucket's clock, never compared across machines; a request takes effect at most `request_s` after it was made, or not at
all. The client gives up after 150 seconds.

- A slow writer: a draft is heeded for `lease_s` and `request_s`, and a writer makes no request W3 after `lease_s`. It
  begins again at W1 instead. Should it be stopped at that very moment for longer than that, it notices afterwards that
  its draft is gone, and begins again: its manifest is there, and it puts what may be missing.
- A dead writer: its draft is swept after those times, its blocks by the next `gc`. A manifest is one object: it is
  there, whole, or not.
- A slow `gc`: it makes no request to delete after `delete_s` from before G1. What is not deleted by then stays.
- A dead `gc`, or one with a deletion that got no answer: its `tmp/doomed-…` stays, and writers wait for it until
  `delete_s` and `request_s` have passed since it was written. Then no deletion of its can take effect any more.
- Two `gc` at once delete what both have seen unneeded, each under its own `tmp/doomed-…`.

The one thing that this can't survive is a machine that is put to sleep between a look at its clock and the request that
follows, for minutes, and awakes with its connection alive.

Names move by compare-and-swap on ETags. A removed name is an empty object: deleting would have no condition, and so
could take away a name that was just given. Each swap has an id, kept with the document (`raysnap-writes`) beside those
of the swaps before it: one that was done, but whose answer was lost, is refused at its own retry and finds its id.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial

from blake3 import blake3

from raysnap.errors import StoreDamaged, StoreError
from raysnap.store.backends.block_cache import BlockCache
from raysnap.store.backends.client import PART_BYTES, Client, ConditionFailed, Found
from raysnap.store.backends.disk import OnPiece
from raysnap.store.backends.place import (
    MANY_AT_ONCE,
    MAX_OBJECT_BYTES,
    OBJECTS,
    REFS,
    SNAPSHOTS,
    STORE_FILE,
    TMP,
    Allocate,
    Chunk,
    Entry,
    Item,
    Needed,
    OnRead,
    Result,
    Sighting,
    is_object_key,
    object_key,
)
from raysnap.store.backends.promises import check_promises

MAX_WRITES = 32
PARTS_AT_ONCE = 8
DRAFT, DOOMED = f"{TMP}/draft-", f"{TMP}/doomed-"


@dataclass(frozen=True)
class Bounds:
    """What a bucket's laws rest on; see the module's docstring. All processes of one store have the same.

    Attributes:
        request_s: a request takes effect within this time, or not at all.
        lease_s: how long a writer may rely on its draft.
        delete_s: how long a `gc` may delete after it condemned.
        poll_s: how soon a writer looks whether a `gc` has ended; then after twice the time, up to `max_poll_s`.
    """

    request_s: float = 180.0
    lease_s: float = 600.0
    delete_s: float = 180.0
    poll_s: float = 0.5
    max_poll_s: float = 8.0


class Clock:
    """This process's time, and the bucket's by it."""

    def __init__(self) -> None:
        self._asked: tuple[int, float] | None = None

    def now_s(self) -> float:
        """Return a time that runs on while the machine sleeps."""
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def place_ns(self, ask: Callable[[], int]) -> int:
        """Return the bucket's time in nanoseconds: asked for once, then counted on."""
        if self._asked is None:
            self._asked = ask(), self.now_s()
        place_ns, own_s = self._asked
        return place_ns + int((self.now_s() - own_s) * 1e9)


class Bucket:
    """The place of a store in a bucket: `Place`, by requests.

    Attributes:
        client: counts the requests.
    """

    is_far = True

    def __init__(
        self,
        client: Client,
        on_read: OnRead | None = None,
        cache: BlockCache | None = None,
        bounds: Bounds = Bounds(),
        clock: Clock | None = None,
    ):
        self.client = client
        self.on_read = on_read
        self.bounds = bounds
        self.clock = clock or Clock()
        self._cache = cache

    def where(self, key: str = "") -> str:
        return self.client.where(key)

    def is_there(self) -> bool:
        return self.exists(STORE_FILE)

    def check_vacant(self, create: bool) -> None:
        others = [found.key for found in self.client.list_below("") if not found.key.startswith(f"{TMP}/")]
        if others:
            raise StoreError(
                f"{self.where()}: expected a model store, found other objects without {STORE_FILE}, such as "
                f"{others[0][:200]}"
            )
        if not create:
            raise StoreError(f"{self.where()}: expected a model store, found nothing there")

    def prepare(self) -> None:
        """Refuse a bucket that doesn't keep what this module relies on, or has rules that would destroy a store."""
        check_promises(self.client)
        self.client.check_rules()

    # Documents

    def read(self, key: str, max_bytes: int) -> bytes:
        return self.client.get(key, max_bytes).content

    def exists(self, key: str) -> bool:
        return self.client.head(key) is not None

    def names(self, folder: str) -> list[str]:
        return [entry.name for entry in self.entries(folder)]

    def entries(self, folder: str) -> list[Entry]:
        listed = [_entry(found) for found in (self.client.list_below(folder) if folder else self.client.list_top())]
        return [entry for entry in listed if entry.num_bytes] if folder == REFS else listed

    def keys(self) -> Iterator[str]:
        for folder in (SNAPSHOTS, REFS, OBJECTS):
            yield from (found.key for found in self.client.list_below(folder))

    def last_change(self, folder: str) -> int | None:  # noqa: ARG002 - a bucket has no folders that change
        return None

    def create(self, key: str, content: bytes) -> bool:
        with suppress(ConditionFailed):
            self.client.put_if(key, content, None, secrets.token_hex(8))
            return True
        return False

    def write(self, key: str, content: bytes) -> None:
        self.client.put(key, content)

    def remove(self, key: str) -> None:
        self.client.delete([key])

    def sync(self, key: str) -> None:
        """Do nothing: what a bucket shows has been stored."""

    def hold_names(self) -> nullcontext[None]:
        return nullcontext()

    def look(self, key: str, max_bytes: int) -> Sighting | None:
        with suppress(FileNotFoundError):
            found = self.client.get(key, max_bytes)
            return Sighting(found.content, found.e_tag, found.writes, is_removed=not found.content)
        return None

    def swap(self, key: str, seen: Sighting | None, content: bytes) -> bool:
        write = secrets.token_hex(8)
        earlier = seen.writes[: MAX_WRITES - 1] if seen is not None else ()
        try:
            self.client.put_if(key, content, seen.version if seen is not None else None, write, earlier)
        except (ConditionFailed, StoreError) as error:
            now = self.look(key, len(content))
            if now is not None and write in now.writes:
                return True  # done, and its answer lost
            if isinstance(error, StoreError):
                raise
            return False
        return True

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item], at_once: int = MANY_AT_ONCE
    ) -> Iterator[Result]:
        with ThreadPoolExecutor(at_once) as pool:
            yield from pool.map(function, items)

    def now_ns(self) -> int:
        return self.clock.place_ns(self._ask_time)

    def _ask_time(self) -> int:
        key = f"{TMP}/clock-{secrets.token_hex(8)}"
        self.client.put(key, b"")
        found = self.client.head(key)
        self.client.delete([key])
        return found.written_ns if found is not None else time.time_ns()

    # Objects

    def has_object(self, digest: str, num_bytes: int) -> bool:
        found = self.client.head(object_key(digest))
        return found is not None and found.num_bytes == num_bytes

    def put_object(self, digest: str, chunks: Sequence[Chunk]) -> None:
        """Write an object over any that is there: that has the same bytes or is damaged, so a retry does no harm."""
        content = b"".join(chunks)
        if blake3(content).hexdigest() != digest:
            raise StoreError(f"block {digest}: its tensors changed while they were written; nothing was stored")
        self.client.put(object_key(digest), content)

    def object_bytes(self, digest: str) -> int:
        found = self.client.head(object_key(digest))
        if found is None:
            raise StoreDamaged("the object is missing")
        return found.num_bytes

    def read_object(self, digest: str, allocate: Allocate | None = None, *, may_be_near: bool = True) -> memoryview:
        """Return an object from this machine's cache, or else from the bucket, in parts fetched side by side."""
        started_s = time.perf_counter()

        def on_piece(num_bytes: int) -> None:
            if self.on_read is not None:
                self.on_read(digest, num_bytes, started_s)

        if self._cache is None or not may_be_near:
            return self._fetch(digest, allocate, on_piece)
        return self._cache.read(digest, lambda: self._fetch(digest, allocate, on_piece), allocate, on_piece)

    def _fetch(self, digest: str, allocate: Allocate | None, on_piece: OnPiece) -> memoryview:
        key, arriving = object_key(digest), _Arriving(digest, allocate)
        try:
            first = self._read_part(key, arriving, 0)
        except StoreError:
            if self.object_bytes(digest) == 0:  # no part of it can be asked for
                raise StoreDamaged("it has no bytes") from None
            raise
        starts = range(PART_BYTES, arriving.num_bytes, PART_BYTES)
        parts = self.map(partial(self._read_part, key, arriving), starts, PARTS_AT_ONCE)
        for start, count in itertools.chain([(0, first)], zip(starts, parts, strict=False)):
            arriving.hash(start, count)
            on_piece(count)
        return arriving.checked()

    def _read_part(self, key: str, arriving: _Arriving, start: int) -> int:
        try:
            return self.client.read_part(key, start, PART_BYTES, partial(arriving.take, start))
        except FileNotFoundError:
            raise StoreDamaged("the object is missing") from None

    def objects(self) -> Iterator[Entry]:
        yield from (_entry(found) for found in self.client.list_below(OBJECTS) if is_object_key(found.key))

    # Drafts and garbage

    @contextmanager
    def draft(self, content: bytes) -> Iterator[_Draft]:
        draft = _Draft(self, f"{DRAFT}{secrets.token_hex(8)}", content)
        try:
            yield draft
        finally:
            with suppress(StoreError):  # the next gc sweeps it
                self.client.delete([draft.key])

    def drafts(self) -> list[str]:
        return [found.key for found in self.client.list_below(TMP) if found.key.startswith(DRAFT)]

    def sweep(self, newest_ns: int | None) -> int:
        """Remove what no writer relies on any more, whatever the grace."""
        now_ns = self.now_ns()
        heeded_s = {DRAFT: self.bounds.lease_s, DOOMED: self.bounds.delete_s}
        swept = []
        for found in self.client.list_below(TMP):
            kept_s = next((kept for prefix, kept in heeded_s.items() if found.key.startswith(prefix)), 0.0)
            latest_ns = now_ns - int((kept_s + self.bounds.request_s) * 1e9)
            if found.written_ns <= min(latest_ns, newest_ns if newest_ns is not None else latest_ns):
                swept.append(found.key)
        self.client.delete(swept)
        return len(swept)

    @contextmanager
    def condemn(self, entries: Iterable[Entry]) -> Iterator[_Doomed]:
        doomed = _Doomed(self, list(entries))
        try:
            yield doomed
        finally:
            doomed.end()

    def await_verdicts(self, digests: set[str]) -> None:
        """Wait until no `gc` may delete any of these objects any more."""
        pause_s = self.bounds.poll_s
        harmless: set[str] = set()  # what a `gc` condemned is written once
        while any(self._may_delete(found, digests, harmless) for found in self.client.list_below(TMP)):
            self.clock.sleep(pause_s)
            pause_s = min(2 * pause_s, self.bounds.max_poll_s)

    def _may_delete(self, found: Found, digests: set[str], harmless: set[str]) -> bool:
        if not found.key.startswith(DOOMED) or found.key in harmless:
            return False
        age_s = (self.now_ns() - found.written_ns) / 1e9
        if age_s > self.bounds.delete_s + self.bounds.request_s:
            return False
        with suppress(FileNotFoundError):
            if not digests.isdisjoint(self.client.get(found.key, found.num_bytes).content.decode().split()):
                return True
        harmless.add(found.key)
        return False


class _Arriving:
    """An object's bytes as they arrive, copied into memory of their own and hashed there while in the CPU's cache."""

    num_bytes = 0

    def __init__(self, digest: str, allocate: Allocate | None):
        self._digest, self._allocate = digest, allocate
        self._buffer: memoryview | None = None
        self._hasher, self._num_hashed = blake3(), 0

    def take(self, start: int, num_bytes: int, pieces: Iterable[memoryview]) -> int:
        """Copy a part to where it belongs, hash the first one, and return its length; of the same part once at a time.

        The first part is to arrive before the others, which may do so side by side.
        """
        if self._buffer is None:
            self._buffer = self._make_room(num_bytes)
        if num_bytes != self.num_bytes:
            raise StoreDamaged(f"expected {self.num_bytes} bytes as before, found {num_bytes}")
        at, hasher = start, blake3()
        for piece in pieces:
            end = min(at + len(piece), num_bytes)
            self._buffer[at:end] = piece[: end - at]
            if start == 0:
                hasher.update(self._buffer[at:end])
            at = end
        if start == 0:
            self._hasher, self._num_hashed = hasher, at
        return at - start

    def _make_room(self, num_bytes: int) -> memoryview:
        import numpy as np

        if num_bytes > MAX_OBJECT_BYTES:
            raise StoreDamaged(f"expected at most {MAX_OBJECT_BYTES} bytes, found {num_bytes}")
        self.num_bytes = num_bytes
        try:
            return self._allocate(num_bytes) if self._allocate else np.empty(num_bytes, dtype=np.uint8).data
        except MemoryError:
            raise StoreError(f"block {self._digest}: its {num_bytes} bytes do not fit into memory") from None

    def hash(self, start: int, num_bytes: int) -> None:
        """Hash a part that has arrived, the parts in order."""
        if start == self._num_hashed and self._buffer is not None:
            self._hasher.update(self._buffer[start : start + num_bytes])
            self._num_hashed += num_bytes

    def checked(self) -> memoryview:
        """Return the bytes, if they are all there and have the digest."""
        digest = self._hasher.hexdigest()
        if self._buffer is None or self._num_hashed != self.num_bytes or digest != self._digest:
            raise StoreDamaged(f"its {self._num_hashed} bytes have the BLAKE3 {digest}")
        return self._buffer


class _Draft:
    """A manifest in `tmp/` that each `gc` heeds for a time."""

    def __init__(self, bucket: Bucket, key: str, content: bytes):
        self._bucket, self.key, self._content = bucket, key, content
        self._began_s = bucket.clock.now_s()
        bucket.client.put(key, content)

    def missing(self, needed: Sequence[Needed]) -> list[Needed]:
        self._bucket.await_verdicts({one.digest for one in needed})
        has = self._bucket.map(lambda one: self._bucket.has_object(one.digest, one.num_bytes), needed)
        return [one for one, is_there in zip(needed, has, strict=True) if not is_there]

    def publish(self, key: str, seen: Sighting | None) -> bool:
        if self._bucket.clock.now_s() - self._began_s > self._bucket.bounds.lease_s:
            return False
        return self._bucket.swap(key, seen, self._content) and self._bucket.exists(self.key)


class _Doomed:
    """Objects that one `gc` may delete for a time; writers that need one of them wait for it to end."""

    def __init__(self, bucket: Bucket, entries: list[Entry]):
        self._bucket, self._entries = bucket, entries
        self._key = f"{DOOMED}{secrets.token_hex(8)}"
        self._is_answered = True
        self._began_s = bucket.clock.now_s()
        if entries:
            bucket.client.put(self._key, "\n".join(entry.name for entry in entries).encode())

    def entries(self) -> Iterator[Entry]:
        yield from self._entries

    def spare(self, digests: Sequence[str]) -> None:
        """Do nothing: they stay where they are."""

    def delete(self, digests: Sequence[str]) -> list[str]:
        """Delete objects as long as writers wait for it; the rest stays."""
        deleted: list[str] = []
        for start in range(0, len(digests), 1000):
            if self._bucket.clock.now_s() - self._began_s > self._bucket.bounds.delete_s:
                break
            batch = digests[start : start + 1000]
            self._is_answered = False
            self._bucket.client.delete([object_key(digest) for digest in batch])
            self._is_answered = True
            deleted += batch
        return deleted

    def end(self) -> None:
        """Let writers go on, if no deletion can come any more."""
        if self._entries and self._is_answered:
            with suppress(StoreError):  # writers stop waiting for it after a time
                self._bucket.client.delete([self._key])


def _entry(found: Found) -> Entry:
    return Entry(found.key.rpartition("/")[2], found.num_bytes, found.written_ns, found.e_tag)
