"""Delete the blocks that no manifest reaches, while others write and without a lock.

Why no live block is ever lost, whatever the grace and however slow any process is. A writer of a snapshot (`store`)

  W1. stages its manifest in STORE/tmp (a draft: any `gc` can read which blocks it is about to need),
  W2. then touches each of its blocks in objects, which fails for a block that is not there,
  W3. then publishes the draft by renaming it into snapshots.

A `gc` owns what it may delete:

  G1. it renames an unreached block out of objects, to a name in STORE/tmp that only this `gc` uses,
  G2. then reads the drafts, and after them the manifests, once more,
  G3. then restores what any of them needs and deletes the rest.

If W1 comes before G2, then G2 sees the draft, or its manifest (drafts are listed first, so a rename between the two
listings can't hide it), and the block is restored. If W1 comes after G2, then W2 comes after G1: the touch fails, and
the writer restores the block itself or, if it is already deleted, writes it again before W3. So a manifest never
becomes visible without its blocks. A draft that a `gc` removes can't be renamed: its writer starts again at W1.
Blocks that a dead `gc` left in STORE/tmp are adopted by the next one through the same three steps, and until then
readers and writers find them there.

The grace only saves writers work: it keeps blocks whose manifest is not written yet.
"""

from __future__ import annotations

import os
import secrets
from contextlib import nullcontext, suppress
from pathlib import Path

from raysnap.errors import StoreDamaged, StoreError, StoreUnreadable
from raysnap.store.catalog import is_manifest_name, read_manifest_bytes
from raysnap.store.files import Files, discard, entries_in, names_in, translate_write_errors
from raysnap.store.manifest import FORMATS, block_digests, check_manifest_bytes


class Reached:
    """The blocks that the store's manifests and drafts need; `scan` adds those of files that are new since the last."""

    def __init__(self, files: Files):
        self._files = files
        self._seen: set[str] = set()
        self._digests: set[bytes] = set()

    def __contains__(self, digest: str) -> bool:
        return digest.encode() in self._digests

    def scan(self) -> None:
        """Read new files, drafts before manifests; see the module's docstring.

        Raises:
            StoreDamaged: a manifest or draft can't be read, so the blocks that it needs are unknown.
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
            marks = (f'"format":{number},"id":"{path.stem}",'.encode() for number in FORMATS)
            if not is_draft and not any(mark in raw for mark in marks):
                raise StoreDamaged(f"{path}: expected the manifest of {path.stem}, found something else")
            # A draft without a sound checksum is not staged yet (before W1): its writer has touched no block so far.
            with suppress(StoreDamaged) if is_draft else nullcontext():
                check_manifest_bytes(raw, str(path))
                self._digests.update(block_digests(raw))
        except FileNotFoundError:
            return  # removed, or a draft that was published or abandoned
        except (StoreDamaged, StoreUnreadable) as error:
            raise type(error)(
                f"{error}; nothing is deleted while a manifest is unreadable: restore it or remove the file"
            ) from None


def collect_garbage(files: Files, grace_s: float) -> dict[str, int]:
    """Delete unreached blocks and abandoned temporary files older than the grace, and return what was done.

    Args:
        files: the store's files.
        grace_s: blocks touched within this time stay; 0 deletes everything that nothing reaches now.

    Returns:
        `num_blocks_deleted`, `deleted_bytes`, `num_blocks_kept`, `num_files_swept` (temporary files removed).

    Raises:
        StoreDamaged: a manifest is damaged; nothing is deleted then.
        StoreError: the store can't be written.
    """
    newest_ns = files.now_ns() - int(grace_s * 1e9) if grace_s > 0 else None
    reached = Reached(files)
    with translate_write_errors(files.root):
        files.recreate_folders()
        # First, so that the draft of a dead writer does not keep its blocks for another round.
        num_stale = _remove_stale_files(files, newest_ns)
        reached.scan()
        token = secrets.token_hex(8)
        num_kept, owned = _set_aside(files, reached, newest_ns, token)
        owned += _adopt_abandoned(files, token)
        try:
            reached.scan()
        except (StoreDamaged, StoreError):
            for digest in owned:
                files.publish(_aside_path(files, token, digest), files.object_path(digest))
            raise
        num_deleted, deleted_bytes = 0, 0
        for digest in owned:
            path = _aside_path(files, token, digest)
            with suppress(FileNotFoundError):
                # Checked again: a touch between the first check of its age and its renaming counts.
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
        "num_files_swept": num_stale,
    }


def _aside_path(files: Files, token: str, digest: str) -> Path:
    return files.tmp_dir / f"gone-{token}-{digest}"


def _is_old(status: os.stat_result, newest_ns: int | None) -> bool:
    return newest_ns is None or status.st_mtime_ns <= newest_ns


def _set_aside(files: Files, reached: Reached, newest_ns: int | None, token: str) -> tuple[int, list[str]]:
    """Do step G1 for all old blocks that nothing reaches; return how many stay, and the digests of those set aside."""
    num_kept, owned = 0, []
    for entry in files.objects():
        with suppress(FileNotFoundError):
            if entry.name in reached or not _is_old(entry.stat(), newest_ns):
                num_kept += 1
                continue
            Path(entry.path).replace(_aside_path(files, token, entry.name))
            owned.append(entry.name)
    return num_kept, owned


def _adopt_abandoned(files: Files, token: str) -> list[str]:
    """Make this `gc` the owner of blocks that another one set aside and left; return their digests."""
    owned = []
    for path in files.find_set_aside():
        digest = path.name[-64:]
        if path.name.startswith(f"gone-{token}-"):
            continue
        with suppress(FileNotFoundError):
            path.replace(_aside_path(files, token, digest))
            owned.append(digest)
    return owned


def _remove_stale_files(files: Files, newest_ns: int | None) -> int:
    """Remove what dead writers left in STORE/tmp, and return the number of files."""
    num_stale = 0
    for entry in entries_in(files.tmp_dir):
        with suppress(FileNotFoundError):
            if not entry.name.startswith("gone-") and entry.is_file() and _is_old(entry.stat(), newest_ns):
                discard(Path(entry.path))
                num_stale += 1
    return num_stale
