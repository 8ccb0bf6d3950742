"""Objects of stores that are far away, kept on this machine: each is fetched once, whatever process asks first.

An object is named by the digest of its bytes, and every read verifies them; so what lies here can't be stale, and what
is damaged here is fetched again.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from raysnap.atomic import replacing
from raysnap.datasets.disk_cache import DiskCache, mark_used
from raysnap.errors import StoreDamaged, UsageError
from raysnap.store.backends.disk import OnPiece, open_regular, read_verified
from raysnap.store.backends.place import Allocate
from raysnap.system import user_cache_dir

BUDGET = "RAYSNAP_BLOCK_CACHE_BYTES"
"""Environment variable: bound on the bytes of all cached objects of this user; 0 keeps none."""

DEFAULT_BUDGET_BYTES = 32 * 2**30

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BlockCache:
    """The objects kept in one folder, the least recently used evicted first."""

    place: Path
    budget_bytes: int

    @classmethod
    def of_user(cls) -> BlockCache:
        """Return the cache that all stores of this user share on this machine.

        Raises:
            UsageError: the environment gives a budget that is no number.
        """
        given = os.environ.get(BUDGET)
        if given is not None and not (given.isascii() and given.isdigit()):
            raise UsageError(f"{BUDGET}: expected a number of bytes, found {given[:80]!r}")
        return cls(user_cache_dir() / "blocks" / "stores", DEFAULT_BUDGET_BYTES if given is None else int(given))

    def read(
        self, digest: str, fetch: Callable[[], memoryview], allocate: Allocate | None, on_piece: OnPiece | None
    ) -> memoryview:
        """Return the object's bytes, from here or else as `fetch` returns them, verified; and keep them here.

        A cache that can't be written or has no room is as good as none.
        """
        if not self.budget_bytes:
            return fetch()
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            opened = (self.place / f".{digest[:2]}.lock").open("wb")
        except OSError as error:
            logger.info("cache %s can't be used: %s", self.place, error.strerror or error)
            return fetch()
        with opened as lock, _locked(lock.fileno()):
            path = self.place / digest
            with suppress(FileNotFoundError, OSError, StoreDamaged), open_regular(path) as file:
                content = read_verified(file, digest, allocate, on_piece)
                mark_used(path)
                return content
            content = fetch()
            self._keep(path, content)
        return content

    def forget(self, digests: Iterable[str]) -> None:
        """Remove objects, those that are here."""
        for digest in digests:
            with suppress(OSError):
                (self.place / digest).unlink(missing_ok=True)

    def _keep(self, path: Path, content: memoryview) -> None:
        disk = DiskCache((self.place,), self.budget_bytes)
        try:
            path.unlink(missing_ok=True)
            with disk.locked():
                if not disk.make_room(self.place, len(content)):
                    return
                with replacing(path) as file:
                    file.write(content)
        except OSError as error:
            logger.info("cache %s: %s was not kept: %s", self.place, path.name, error.strerror or error)


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
