"""What a store needs of the place that it is kept in; the laws that a place keeps are tests in `raysnap.testing`.

A place holds small documents and large objects under keys, which are paths inside the store: `refs/best`. It knows
their form, not their meaning; what is written in which order, and what is checked when, the rest of the room decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

from raysnap.errors import StoreError
from raysnap.store.manifest import BlockEntry, check_digest, is_digest, is_ref_name
from raysnap.store.preprocessing import TokenizerEntry

STORE_FILE = "store.json"
OBJECTS, SNAPSHOTS, REFS, RECORDS, TMP = "objects", "snapshots", "refs", "records", "tmp"
MAX_ATTEMPTS = 10
MAX_OBJECT_BYTES = 2**36
MANY_AT_ONCE = 32
FEW_AT_ONCE = 4  # of what holds a whole object in memory

OnRead: TypeAlias = Callable[[str, int, float], None]
"""Called after each piece of an object is read; it may block to slow reading down.

Arguments: the object's digest, the piece's number of bytes, and when reading the object began, in seconds of
`time.perf_counter`.
"""

Chunk: TypeAlias = bytes | memoryview
Allocate: TypeAlias = Callable[[int], memoryview]
"""Returns memory of the given number of bytes, where a special kind is needed."""

Needed: TypeAlias = BlockEntry | TokenizerEntry
Item = TypeVar("Item")
Result = TypeVar("Result")


class Entry(NamedTuple):
    """One document or object in a listing.

    Attributes:
        name: the last part of its key.
        written_ns: when it was written or last touched, by the place's own clock.
        stamp: changes when it is replaced.
    """

    name: str
    num_bytes: int
    written_ns: int
    stamp: str


class Sighting(NamedTuple):
    """A document as it was at one moment, which `swap` replaces only if it still is.

    Attributes:
        content: its bytes.
        version: what the place knows this state by.
        writes: the latest swaps that led to it, where the place can't tell otherwise whose they were.
        is_removed: whether it is no document, but the mark that a removed one left.
    """

    content: bytes
    version: str = ""
    writes: tuple[str, ...] = ()
    is_removed: bool = False


class Draft(Protocol):
    """A manifest that others can see coming: what it needs, and is there, stays while the draft does."""

    def missing(self, needed: Sequence[Needed]) -> list[Needed]:
        """Return which of the objects that the manifest needs are not there in full length; the others stay."""

    def publish(self, key: str, seen: Sighting | None) -> bool:
        """Make the manifest visible as `key`, whole, in the place of what was `seen` there.

        Return False if that changed, or if a `gc` may have stopped heeding the draft.
        """


class Condemned(Protocol):
    """Objects that one `gc` may delete: from now on no draft relies on them without bringing them back."""

    def entries(self) -> Iterator[Entry]:
        """Yield the objects, those among them that another `gc` condemned and left."""

    def spare(self, digests: Sequence[str]) -> None:
        """Give objects back."""

    def delete(self, digests: Sequence[str]) -> list[str]:
        """Delete objects, as many as there is time for, and return the digests of those."""


class Place(Protocol):
    """The place of one store. All methods raise StoreError or StoreUnreadable where the place refuses or fails."""

    def where(self, key: str = "") -> str:
        """Return how messages name the key: a path or an address; without a key, the store's own."""

    def is_there(self) -> bool:
        """Return whether there is anything: a folder, or a store in a bucket."""

    def check_vacant(self, create: bool) -> None:
        """Refuse a place that holds something other than the beginnings of a store; and any, unless `create`."""

    def prepare(self) -> None:
        """Make what has to be there before the first document is."""

    def read(self, key: str, max_bytes: int) -> bytes:
        """Return a document, but at most one byte more than `max_bytes`.

        Raises:
            FileNotFoundError: there is none.
            StoreDamaged: something else is there.
        """

    def exists(self, key: str) -> bool:
        """Return whether there is such a document or object."""

    def names(self, folder: str) -> list[str]:
        """Return the names of all that is directly in a folder; none of a folder that isn't there."""

    def entries(self, folder: str) -> list[Entry]:
        """Return the documents directly in a folder; `""` is the store's own."""

    def keys(self) -> Iterator[str]:
        """Yield the keys of all that is in the folders of objects, manifests and names, whatever it is."""

    def last_change(self, folder: str) -> int | None:
        """Return when a folder last changed, in nanoseconds; None where the place can't tell and only a listing can."""

    def create(self, key: str, content: bytes) -> bool:
        """Make a document visible, whole, unless one is there; return whether this did it."""

    def write(self, key: str, content: bytes) -> None:
        """Make a document visible, whole, in the place of any that is there."""

    def remove(self, key: str) -> None:
        """Remove a document, if it is there, for good once this returns."""

    def sync(self, key: str) -> None:
        """Make sure that a document which is visible, and maybe another process's, stays so after a power cut."""

    def hold_names(self) -> AbstractContextManager[None]:
        """Keep others from moving names, where the place has locks; `swap` decides in any case."""

    def look(self, key: str, max_bytes: int) -> Sighting | None:
        """Return a document and what `swap` needs to replace it; None where nothing was ever there."""

    def swap(self, key: str, seen: Sighting | None, content: bytes) -> bool:
        """Replace a document by `content` (empty removes it) if it still is what was `seen`; return whether it was.

        Inside `hold_names`. True means that exactly this call did it, however often it was sent.
        """

    @property
    def is_far(self) -> bool:
        """Whether each operation waits for an answer, so that many at once take no longer."""

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item], at_once: int = MANY_AT_ONCE
    ) -> Iterator[Result]:
        """Return the function's results in order; so many at once where the place is far."""

    def now_ns(self) -> int:
        """Return the place's own time in nanoseconds, which ages are measured by."""

    def has_object(self, digest: str, num_bytes: int) -> bool:
        """Return whether an object is there in full length, asked of the place itself; its grace restarts if it can."""

    def put_object(self, digest: str, chunks: Sequence[Chunk]) -> None:
        """Make an object visible, whole, and stored for good once this returns.

        Raises:
            StoreError: its bytes are not those of the digest, or it can't be written.
        """

    def object_bytes(self, digest: str) -> int:
        """Return an object's length; raise StoreDamaged where it is missing."""

    def read_object(self, digest: str, allocate: Allocate | None = None, *, may_be_near: bool = True) -> memoryview:
        """Return an object's bytes in memory of their own; it is that memory whose digest was verified.

        `may_be_near` says whether a copy that this machine keeps will do, or only what the place itself has.

        Raises:
            StoreDamaged: it is missing or has another digest.
        """

    def objects(self) -> Iterator[Entry]:
        """Yield every object, listed by the place itself."""

    def draft(self, content: bytes) -> AbstractContextManager[Draft]:
        """Show a manifest's bytes as a draft until the `with` block ends."""

    def drafts(self) -> list[str]:
        """Return the keys of all drafts that a `gc` must heed."""

    def sweep(self, newest_ns: int | None) -> int:
        """Remove what dead writers and collectors left, written at `newest_ns` or before; return how many documents."""

    def condemn(self, entries: Iterable[Entry]) -> AbstractContextManager[Condemned]:
        """Condemn objects, and what a dead `gc` condemned, until the `with` block ends, by an error or not."""


def object_key(digest: str) -> str:
    """Return the key of the object with this digest, which is checked before it becomes a path."""
    check_digest(digest, "block digest")
    return f"{OBJECTS}/{digest[:2]}/{digest}"


def is_manifest_name(name: str) -> bool:
    """Return whether a document in `snapshots` has the name of a manifest: an id and `.json`."""
    return name.endswith(".json") and is_digest(name.removesuffix(".json"))


def is_object_key(key: str) -> bool:
    """Return whether this is an object's key: a digest in the folder of its first two characters."""
    folder, _, name = key.rpartition("/")
    return is_digest(name) and folder == f"{OBJECTS}/{name[:2]}"


def belongs(key: str) -> bool:
    """Return whether a store has a place for this key in its folders of objects, manifests and names."""
    folder, _, name = key.partition("/")
    if folder == SNAPSHOTS:
        return is_manifest_name(name)
    return is_ref_name(name) if folder == REFS else is_object_key(key) or bool(re.fullmatch("[0-9a-f]{2}", name))


def gc_race_error(where: str) -> StoreError:
    """Return the error for what a gc without grace removed every time it was about to be published."""
    return StoreError(f"{where}: a gc removed it {MAX_ATTEMPTS} times while it was being written; try again")
