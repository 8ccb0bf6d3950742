"""Taking away the blocks that no manifest reaches, beside writers and without a lock.

Why no live block is ever lost, whatever the grace and however slow anyone is. A writer of a snapshot (`store`)

  W1. stages its manifest in STORE/tmp (a draft: any `gc` can read which blocks it is about to need),
  W2. then touches each of its blocks in objects, which fails for a block that is not there,
  W3. then publishes the draft by renaming it into snapshots.

A `gc` owns what it may delete:

  G1. it renames an unreached block out of objects, to a name in STORE/tmp that only this `gc` uses,
  G2. then reads the drafts, and after them the manifests, once more,
  G3. then puts back what any of them needs and deletes the rest.

If W1 comes before G2, then G2 sees the draft, or its manifest (drafts are listed first, so a rename between the two
listings can't hide it), and the block is put back. If W1 comes after G2, then W2 comes after G1: the touch fails, and
the writer puts the block back itself or, where it is deleted already, writes it again before W3. So a manifest never
becomes visible without its blocks. A draft that a `gc` sweeps away can't be renamed: its writer starts again at W1.
Blocks that a dead `gc` left in STORE/tmp are taken over by the next one through the same three steps, and until then
readers and writers find them there.

The grace only spares writers the work: it keeps blocks whose manifest is still to come.
"""

from __future__ import annotations

import os
import secrets
from contextlib import nullcontext, suppress
from pathlib import Path

from raysnap.errors import StoreDamaged
from raysnap.store.catalog import is_manifest_name, read_manifest_bytes
from raysnap.store.files import Files, discard, entries_in, explained, names_in
from raysnap.store.manifest import FORMAT, block_digests, check_manifest_bytes


class Reached:
    """The blocks that the store's manifests and drafts need; `look` adds those that came since the last look."""

    def __init__(self, files: Files):
        self._files = files
        self._seen: set[str] = set()
        self._digests: set[bytes] = set()

    def __contains__(self, digest: str) -> bool:
        return digest.encode() in self._digests

    def look(self) -> None:
        """Reads what is new; drafts before manifests, see the module's docstring.

        Raises:
            StoreDamaged: a manifest or draft can't be read, so that no one knows which blocks it needs.
        """
        for name in names_in(self._files.tmp_dir):
            if name.startswith("draft-"):
                self._add(self._files.tmp_dir / name, is_draft=True)
        for name in names_in(self._files.snapshots_dir):
            if name not in self._seen and is_manifest_name(name):
                self._add(self._files.snapshots_dir / name)
                self._seen.add(name)

    def _add(self, path: Path, is_draft: bool = False) -> None:
        try:
            raw = read_manifest_bytes(path)
            if not is_draft and f'"format":{FORMAT},"id":"{path.stem}",'.encode() not in raw:
                raise StoreDamaged(f"{path}: expected the manifest of {path.stem}, found something else")
            # A draft without a sound checksum is not staged yet (before W1): its writer has touched no block so far.
            with suppress(StoreDamaged) if is_draft else nullcontext():
                check_manifest_bytes(raw, str(path))
                self._digests.update(block_digests(raw))
        except FileNotFoundError:
            return  # removed, or a draft that was published or given up
        except StoreDamaged as error:
            raise StoreDamaged(
                f"{error}; nothing is deleted while a manifest is unreadable: restore it or remove that file"
            ) from None


def collect_garbage(files: Files, grace_s: float) -> dict[str, int]:
    """Deletes unreached blocks and abandoned temporary files older than the grace; what was done, in numbers.

    Args:
        files: the store's files.
        grace_s: blocks touched within this time stay; 0 takes everything that nothing reaches now.

    Raises:
        StoreDamaged: a manifest is damaged; nothing is deleted then.
        StoreError: the store can't be written.
    """
    newest_ns = files.now_ns() - int(grace_s * 1e9) if grace_s > 0 else None
    reached = Reached(files)
    with explained(files.root):
        # First, so that the draft of a dead writer does not keep its blocks for another round.
        num_swept = _sweep(files, newest_ns)
        reached.look()
        token = secrets.token_hex(8)
        num_kept, taken = _set_aside(files, reached, newest_ns, token)
        taken += _take_over(files, token)
        try:
            reached.look()
        except StoreDamaged:
            for digest in taken:
                files.publish(_aside(files, token, digest), files.object_path(digest))
            raise
        num_deleted, deleted_bytes = 0, 0
        for digest in taken:
            path = _aside(files, token, digest)
            with suppress(FileNotFoundError):
                # Looked at again: a touch between the first look at its age and its renaming counts.
                status = path.stat()
                if digest in reached or not _is_old(status, newest_ns):
                    num_kept += files.publish(path, files.object_path(digest))
                    continue
                path.unlink()
                num_deleted += 1
                deleted_bytes += status.st_size
    return {
        "num_blocks_deleted": num_deleted,
        "deleted_bytes": deleted_bytes,
        "num_blocks_kept": num_kept,
        "num_files_swept": num_swept,
    }


def _aside(files: Files, token: str, digest: str) -> Path:
    return files.tmp_dir / f"gone-{token}-{digest}"


def _is_old(status: os.stat_result, newest_ns: int | None) -> bool:
    return newest_ns is None or status.st_mtime_ns <= newest_ns


def _set_aside(files: Files, reached: Reached, newest_ns: int | None, token: str) -> tuple[int, list[str]]:
    """Step G1 for all old blocks that nothing reaches: how many stay, and the digests of those set aside."""
    num_kept, taken = 0, []
    for entry in files.objects():
        with suppress(FileNotFoundError):
            if entry.name in reached or not _is_old(entry.stat(), newest_ns):
                num_kept += 1
                continue
            Path(entry.path).replace(_aside(files, token, entry.name))
            taken.append(entry.name)
    return num_kept, taken


def _take_over(files: Files, token: str) -> list[str]:
    """Makes this `gc` the owner of blocks that another one set aside and left; their digests."""
    taken = []
    for path in files.set_aside():
        digest = path.name[-64:]
        if path.name.startswith(f"gone-{token}-"):
            continue
        with suppress(FileNotFoundError):
            path.replace(_aside(files, token, digest))
            taken.append(digest)
    return taken


def _sweep(files: Files, newest_ns: int | None) -> int:
    """Removes what dead writers left in STORE/tmp; the number of files."""
    num_swept = 0
    for entry in entries_in(files.tmp_dir):
        with suppress(FileNotFoundError):
            if not entry.name.startswith("gone-") and entry.is_file() and _is_old(entry.stat(), newest_ns):
                discard(Path(entry.path))
                num_swept += 1
    return num_swept
