"""What a power cut may leave of a folder, from the recorded changes of a `store_disk.Disk`.

The model is what POSIX promises and no more (as in ALICE, Pillai et al., OSDI 2014): bytes are on the disk once their
file was fsynced, names once their folder was; before that each of them may be there or not, in any order, and bytes may
be lost, zero or torn. One promise of real file systems is added: a rename never loses the file, though it may leave it
under both names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.support.store_disk import Change

# A folder's content is None.
Tree = dict[Path, bytes | None]
TORN_BYTES = 16


@dataclass(frozen=True)
class Entry:
    """A name that appeared in its folder (`file` is its number, None a folder) or, with `is_gone`, left it."""

    path: Path
    file: int | None
    is_gone: bool = False
    needs: Entry | None = None


class Power:
    """The folder `base` while changes are made to it: what is on the disk for sure, and what is only on its way."""

    def __init__(self, base: Path):
        self._base = base
        self._contents: dict[int, bytes] = {}
        self._synced: dict[int, bytes] = {}
        self._names: dict[Path, int | None] = {}
        for number, path in enumerate(sorted(base.rglob("*"))):
            self._names[path] = None if path.is_dir() else -number
            if not path.is_dir():
                self._contents[-number] = self._synced[-number] = path.read_bytes()
        self._safe_names = dict(self._names)
        self._waiting: list[Entry] = []

    def apply(self, change: Change) -> None:
        """Apply one change."""
        if change.kind == "write":
            old = self._contents[change.file].ljust(change.offset, b"\0")
            self._contents[change.file] = old[: change.offset] + change.data + old[change.offset + len(change.data) :]
        elif change.kind == "fsync":
            self._synced[change.file] = self._contents[change.file]
        elif change.kind == "fsync folder":
            for entry in [entry for entry in self._waiting if entry.path.parent == change.path]:
                self._waiting.remove(entry)
                _enter(self._safe_names, entry)
        elif change.kind in ("create", "mkdir"):
            self._enter(Entry(change.path, change.file if change.kind == "create" else None))
            if change.kind == "create":
                self._contents[change.file], self._synced[change.file] = b"", b""
        elif change.kind == "unlink":
            self._enter(Entry(change.path, None, is_gone=True))
        elif change.kind == "link":
            self._enter(Entry(change.target, self._names[change.path]))
        elif change.kind == "rename":
            arrival = Entry(change.target, self._names[change.path])
            self._enter(arrival)
            self._enter(Entry(change.path, None, is_gone=True, needs=arrival))

    def _enter(self, entry: Entry) -> None:
        _enter(self._names, entry)
        self._waiting.append(entry)

    def cut(self, is_kept: Callable[[Entry], bool], spoil: Callable[[bytes, bytes], bytes]) -> Tree:
        """Return the folder after a power cut at this moment.

        Args:
            is_kept: whether a name that is on its way has arrived.
            spoil: given a file's written and its synced bytes, those that are found.
        """
        names, lost = dict(self._safe_names), set()
        for entry in self._waiting:
            if is_kept(entry) and entry.needs not in lost:
                _enter(names, entry)
            else:
                lost.add(entry)
        tree: Tree = {}
        for path in sorted(names):
            if path.parent != self._base and path.parent.relative_to(self._base) not in tree:
                continue
            number = names[path]
            content = None
            if number is not None:
                written, synced = self._contents[number], self._synced[number]
                content = written if written == synced else spoil(written, synced)
            tree[path.relative_to(self._base)] = content
        return tree


def _enter(names: dict[Path, int | None], entry: Entry) -> None:
    if entry.is_gone:
        names.pop(entry.path, None)
    else:
        names[entry.path] = entry.file


def cuts(power: Power, random: Random, num_random: int) -> Iterator[Tree]:
    """Return the folder after a power cut at this moment, in the worst ways and some random ones."""
    for spoil in (_kept, _lost, _zeroed, _halved):
        yield power.cut(lambda entry: True, spoil)
    yield power.cut(lambda entry: False, _kept)
    yield power.cut(lambda entry: not entry.is_gone, _lost)

    def torn(written: bytes, synced: bytes) -> bytes:
        pieces = [written[start : start + TORN_BYTES] for start in range(0, len(written), TORN_BYTES)]
        return b"".join(piece if random.random() < 0.5 else bytes(len(piece)) for piece in pieces)

    for _ in range(num_random):
        yield power.cut(lambda entry: random.random() < 0.5, random.choice((_kept, _lost, torn)))


def _kept(written: bytes, synced: bytes) -> bytes:
    return written


def _lost(written: bytes, synced: bytes) -> bytes:
    return synced


def _zeroed(written: bytes, synced: bytes) -> bytes:
    return bytes(len(written))


def _halved(written: bytes, synced: bytes) -> bytes:
    return written[: len(written) // 2]


def restore(tree: Tree, base: Path) -> None:
    """Make the folder that the power cut left."""
    base.mkdir()
    for path, content in tree.items():
        if content is None:
            (base / path).mkdir()
        else:
            (base / path).write_bytes(content)
