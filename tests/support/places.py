"""Empty places of every kind, for the laws of stores."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from raysnap.config.folders import BucketAddress
from raysnap.store.backends.block_cache import BlockCache
from raysnap.store.backends.bucket import Bucket, Clock
from raysnap.store.backends.client import Client, Found
from raysnap.store.backends.folder import Folder
from raysnap.store.backends.place import Place

NUMBERS = itertools.count()


class SetClock(Clock):
    """A clock that all views of a place go by, and that a test sets forward."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead_s = 0.0
        self.written_ahead_s: dict[str, float] = {}

    def now_s(self) -> float:
        return super().now_s() + self.ahead_s

    def sleep(self, seconds: float) -> None:
        super().sleep(min(seconds, 0.01))

    def place_ns(self, ask: Callable[[], int]) -> int:
        if self._asked is None:
            aged_ns = ask()  # of an object that this clock has aged
            self._asked = aged_ns - int(self.ahead_s * 1e9), super().now_s()
        place_ns, own_s = self._asked
        return place_ns + int((super().now_s() - own_s + self.ahead_s) * 1e9)


class AgingClient(Client):
    """A client for which what was written before the clock was set forward is as old as the clock says."""

    def __init__(self, client: Client, clock: SetClock):
        self.__dict__.update(client.__dict__)
        self._set = clock

    def put(self, key: str, content: bytes | memoryview) -> None:
        self._set.written_ahead_s[key] = self._set.ahead_s
        super().put(key, content)

    def put_if(self, key: str, *args: object) -> None:
        super().put_if(key, *args)
        self._set.written_ahead_s[key] = self._set.ahead_s

    def head(self, key: str) -> Found | None:
        found = super().head(key)
        return self._aged(found) if found is not None else None

    def list_below(self, prefix: str) -> list[Found]:
        return [self._aged(found) for found in super().list_below(prefix)]

    def _aged(self, found: Found) -> Found:
        ahead_s = self._set.written_ahead_s.get(found.key, 0.0)
        return found._replace(written_ns=found.written_ns + int(ahead_s * 1e9))


class NewFolder:
    """An empty folder; it goes by no clock once a gc has no grace."""

    def __init__(self, path: Path):
        self.path = path

    def open(self) -> Place:
        return Folder(self.path)

    def pass_time(self, seconds: float) -> None:
        pass


class NewBucket:
    """An empty bucket, or an empty prefix of one."""

    def __init__(self, connect: Callable[[], Client], cache: BlockCache | None = None):
        self.connect, self.cache, self.clock = connect, cache, SetClock()

    def open(self) -> Bucket:
        return Bucket(AgingClient(self.connect(), self.clock), cache=self.cache, clock=self.clock)

    def pass_time(self, seconds: float) -> None:
        self.clock.ahead_s += seconds


def in_memory() -> NewBucket:
    """Return an empty bucket in this process's memory."""
    from obstore.store import MemoryStore

    objects = MemoryStore()
    address = BucketAddress(f"s3://memory/{next(NUMBERS)}")
    return NewBucket(lambda: Client(address, objects))
