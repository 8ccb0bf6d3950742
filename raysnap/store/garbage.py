"""Delete the blocks that no manifest reaches, while others write and without a lock.

Why no live block is ever lost, whatever the grace. A writer of a snapshot (`store`)

  W1. shows its manifest as a draft (any `gc` can read which blocks it is about to need),
  W2. then asks the place for each of its blocks, which fails for a block that is not there,
  W3. then publishes the draft as a manifest.

A `gc` owns what it may delete:

  G1. it condemns the unreached blocks,
  G2. then reads the drafts, and after them the manifests, once more,
  G3. then spares what any of them needs and deletes the rest.

A place sees to it that W2, for a block that was condemned before, either brings the block back or says that it is gone,
once nothing can delete it any more; and that W3 fails if a `gc` may have stopped heeding the draft.

In a folder, however slow any process is: to condemn (G1) is to rename a block out of objects, to a name in STORE/tmp
that only this `gc` uses; W2 touches blocks, and W3 renames the draft. `backends.bucket` says how in a bucket.

If W1 comes before G2, then G2 sees the draft, or its manifest (drafts are listed first, so a rename between the two
listings can't hide it), and the block is restored. If W1 comes after G2, then W2 comes after G1: the touch fails, and
the writer restores the block itself or, if it is already deleted, writes it again before W3. So a manifest never
becomes visible without its blocks. A draft that a `gc` removes can't be renamed: its writer starts again at W1.
Blocks that a dead `gc` left in STORE/tmp are adopted by the next one through the same three steps, and until then
readers and writers find them there.

The grace only saves writers work: it keeps blocks whose manifest is not written yet.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress

from raysnap.errors import StoreDamaged, StoreUnreadable
from raysnap.store.backends.place import SNAPSHOTS, Entry, Place, is_manifest_name
from raysnap.store.catalog import read_manifest_bytes
from raysnap.store.manifest import FORMATS, block_digests, check_manifest_bytes


class Reached:
    """The blocks that the store's manifests and drafts need; `scan` adds those of files that are new since the last."""

    def __init__(self, place: Place):
        self._place = place
        self._seen: set[str] = set()
        self._digests: set[bytes] = set()

    def __contains__(self, digest: str) -> bool:
        return digest.encode() in self._digests

    def scan(self) -> None:
        """Read new files, drafts before manifests; see the module's docstring.

        Raises:
            StoreDamaged: a manifest or draft can't be read, so the blocks that it needs are unknown.
        """
        self._add(self._place.drafts(), is_draft=True)
        names = [one for one in self._place.names(SNAPSHOTS) if one not in self._seen and is_manifest_name(one)]
        self._add([f"{SNAPSHOTS}/{name}" for name in names])
        self._seen.update(names)

    def _add(self, keys: list[str], is_draft: bool = False) -> None:
        for digests in self._place.map(lambda key: self._read(key, is_draft), keys):
            self._digests.update(digests)

    def _read(self, key: str, is_draft: bool) -> list[bytes]:
        """Return the digests in a manifest or draft."""
        where = self._place.where(key)
        try:
            raw = read_manifest_bytes(self._place, key)
            snapshot = key.rpartition("/")[2].removesuffix(".json")
            marks = (f'"format":{number},"id":"{snapshot}",'.encode() for number in FORMATS)
            if not is_draft and not any(mark in raw for mark in marks):
                raise StoreDamaged(f"{where}: expected the manifest of {snapshot}, found something else")
            # A draft without a sound checksum is not staged yet (before W1): its writer has touched no block so far.
            with suppress(StoreDamaged) if is_draft else nullcontext():
                check_manifest_bytes(raw, where)
                return block_digests(raw)
            return []
        except FileNotFoundError:
            return []  # removed, or a draft that was published or abandoned
        except (StoreDamaged, StoreUnreadable) as error:
            raise type(error)(
                f"{error}; nothing is deleted while a manifest is unreadable: restore it or remove the file"
            ) from None


def collect_garbage(place: Place, grace_s: float) -> dict[str, int]:
    """Delete unreached blocks and abandoned temporary files older than the grace, and return what was done.

    Args:
        place: the store's place.
        grace_s: blocks touched within this time stay; 0 deletes everything that nothing reaches now.

    Returns:
        `num_blocks_deleted`, `deleted_bytes`, `num_blocks_kept`, `num_files_swept` (temporary files removed).

    Raises:
        StoreDamaged: a manifest is damaged; nothing is deleted then.
        StoreError: the store can't be written.
    """
    newest_ns = place.now_ns() - int(grace_s * 1e9) if grace_s > 0 else None
    reached = Reached(place)
    # First, so that the draft of a dead writer does not keep its blocks for another round.
    num_swept = place.sweep(newest_ns)
    reached.scan()
    num_kept, going = 0, []
    for entry in place.objects():
        if entry.name in reached or not _is_old(entry, newest_ns):
            num_kept += 1
        else:
            going.append(entry)
    with place.condemn(going) as condemned:
        reached.scan()
        entries = {entry.name: entry for entry in condemned.entries()}
        # Checked again: a touch between the first check of its age and its condemnation counts.
        spared = [entry.name for entry in entries.values() if entry.name in reached or not _is_old(entry, newest_ns)]
        deleted = condemned.delete(list(entries.keys() - set(spared)))
        condemned.spare(spared)
        num_kept += len(entries) - len(deleted)
    return {
        "num_blocks_deleted": len(deleted),
        "deleted_bytes": sum(entries[digest].num_bytes for digest in deleted),
        "num_blocks_kept": num_kept,
        "num_files_swept": num_swept,
    }


def _is_old(entry: Entry, newest_ns: int | None) -> bool:
    return newest_ns is None or entry.written_ns <= newest_ns
