"""The model store, format 1: snapshots whose shared blocks lie on the disk once.

Policy only: what is written in which order and what is checked when. The bytes of blocks are made in `objects`, files
move in `files`, `garbage` says why deleting beside writers is safe, `index` lists. A snapshot exists if and only if its
manifest does, and then all its blocks do.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysnap.canonical_json import canonical_json
from raysnap.errors import BlockDamaged, SnapshotNotFound, StoreDamaged, StoreError, UsageError, WeightsError
from raysnap.store import catalog, index
from raysnap.store.audit import verify
from raysnap.store.files import MAX_ATTEMPTS, Files, entries_in, explained, names_in, read_bounded, swept_away
from raysnap.store.garbage import collect_garbage
from raysnap.store.index import Summary
from raysnap.store.manifest import (
    FORMAT,
    MAX_MANIFEST_BYTES,
    BlockEntry,
    DatasetRecord,
    Manifest,
    Preprocessing,
    check_digest,
    check_ref_name,
    snapshot_id,
)
from raysnap.system import package_version, utc_timestamp

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)

STORE_FILE = "store.json"
MAX_STORE_FILE_BYTES = 65_536
STORE_CONTENT = canonical_json({"digest": "blake3", "format": FORMAT}) + b"\n"
DEFAULT_GRACE_S = 3600.0


@dataclass(frozen=True)
class BlockWrite:
    """A block in the store: its digest, its bytes on the disk, and whether this write put them there."""

    digest: str
    num_bytes: int
    is_new: bool


@dataclass(frozen=True)
class SnapshotWrite:
    """A snapshot in the store, and what it took: `new_blocks` blocks of `new_bytes` were not there before."""

    manifest: Manifest
    is_new: bool
    new_blocks: int
    new_bytes: int


Block = "str | BlockWrite | Mapping[str, Tensor]"


class Store:
    """A model store on disk. Any number of processes may read and write it at once.

    Attributes:
        path: the store's folder.
    """

    def __init__(self, path: Path, on_read: Callable[[str, int, float], None] | None = None):
        self.path = path
        self._files = Files(path, on_read)

    @classmethod
    def open(
        cls, path: Path | str, create: bool = False, on_read: Callable[[str, int, float], None] | None = None
    ) -> Store:
        """The store in the folder `path`; with `create`, a new one where there is none.

        `on_read` looks at the reading of blocks, and may slow it: see `Files`.

        Raises:
            StoreError: there is no store, something else stands there, or its format is newer than this raysnap.
        """
        path = Path(path)
        store = cls(path, on_read)
        try:
            raw = read_bounded(path / STORE_FILE, MAX_STORE_FILE_BYTES)
        except FileNotFoundError:
            try:
                store._check_vacant(create)
            except StoreError:
                if not (path / STORE_FILE).exists():
                    raise
                return cls.open(path, on_read=on_read)  # another process made it a moment ago
            store._files.create_folders()
            store._files.write_new(path / STORE_FILE, STORE_CONTENT)
            return store
        except OSError as error:
            if error.errno == errno.ENOTDIR:
                raise StoreError(f"{path}: expected a store's folder, found a file") from None
            raise StoreError(f"{path}: can't be read as a store: {error.strerror}") from None
        _check_format(raw, path / STORE_FILE)
        return store

    def _check_vacant(self, create: bool) -> None:
        """Refuses to make a store where anything else stands; the empty folders of a broken-off start may."""
        path = self.path
        if path.is_symlink() and not path.exists():
            raise StoreError(f"{path}: expected a folder, found a link that leads nowhere")
        if not path.exists():
            if not create:
                raise StoreError(f"{path}: expected a model store, found nothing there")
            return
        with explained(path):
            names = set(names_in(path))
        if names and not (names <= {"objects", "snapshots", "refs", "tmp"} and self._is_empty()):
            raise StoreError(f"{path}: expected a model store, found a folder without {STORE_FILE}")
        if not create:
            raise StoreError(f"{path}: expected a model store, found an empty folder")

    def _is_empty(self) -> bool:
        files = self._files
        folders = (folder for folder in (files.snapshots_dir, files.refs_dir) if folder.is_dir())
        has_objects = files.objects_dir.is_dir() and next(files.objects(), None) is not None
        return not any(names_in(folder) for folder in folders) and not has_objects

    # Blocks

    def put_block(self, tensors: Mapping[str, Tensor]) -> BlockWrite:
        """The block of these tensors, in the store; a block that is there already is not written again.

        Tensors may be on any device, strided in any way and share memory.

        Raises:
            WeightsError: a tensor can't be stored.
            StoreError: the store can't be written.
        """
        from raysnap.models import tensor_bytes as objects  # torch comes with it, which listing a store does without

        chunks = objects.encode(tensors)
        digest, num_bytes = objects.digest(chunks), objects.num_bytes(chunks)
        for _ in range(MAX_ATTEMPTS):
            if self._files.refresh(digest, num_bytes):
                return BlockWrite(digest, num_bytes, is_new=False)
            with self._files.staged("block", chunks, digest) as staged:
                if self._files.publish(staged, self._files.object_path(digest)):
                    return BlockWrite(digest, num_bytes, is_new=True)
        raise swept_away(self._files.object_path(digest))

    def read_block(self, digest: str, device: torch.device | None = None) -> dict[str, Tensor]:
        """The block's tensors, under torchvision's full names, as views of one private, writable piece of memory.

        The file is read once, into memory, and that memory is what is verified.

        Args:
            device: where the tensors shall lie, to compute with them and not to train them: see `objects.decode`. A
                GPU gets a block's at once, from memory that it reads on its own.

        Raises:
            BlockDamaged: the block is missing, or its bytes are not what its digest promises.
        """
        from raysnap.models import tensor_bytes as objects

        try:
            allocate = objects.pinned_memory if device is not None and device.type == "cuda" else None
            return objects.decode(self._files.read_object(digest, allocate), "its bytes", device)
        except (StoreDamaged, WeightsError) as error:
            raise self._damaged(digest, str(error)) from None

    def block_bytes(self, digest: str) -> int:
        """The length of the block's file.

        Raises:
            BlockDamaged: the block is missing.
        """
        try:
            with self._files.open_object(digest) as file:
                return os.fstat(file.fileno()).st_size
        except StoreDamaged as error:
            raise self._damaged(digest, str(error)) from None

    def _damaged(self, digest: str, problem: str) -> BlockDamaged:
        snapshots = tuple(self.snapshots_with([digest])[digest])
        shown = ", ".join(snapshot[:12] for snapshot in snapshots[:5]) + (", …" if len(snapshots) > 5 else "")
        breaks = f"it breaks {len(snapshots)} snapshot(s): {shown}" if snapshots else "no snapshot needs it"
        return BlockDamaged(
            f"{self._files.object_path(digest)}: block damaged: {problem}; {breaks}. Copy the file from a backup, or "
            "remove it and add one of its snapshots again",
            digest,
            snapshots,
        )

    def snapshots_with(self, digests: Iterable[str]) -> dict[str, list[str]]:
        """For each digest the ids of the snapshots that hold this block."""
        return catalog.snapshots_with(self._files, digests)

    # Snapshots

    def put_snapshot(
        self,
        *,
        architecture: str,
        blocks: Sequence[tuple[str, Block]],
        num_classes: int,
        base: str | None = None,
        retrain_index: int | None = None,
        dataset: DatasetRecord | None = None,
        preprocessing: Preprocessing | None = None,
        metrics: Mapping[str, float] | None = None,
        train: Mapping[str, Any] | None = None,
        trial: str | None = None,
        name: str | None = None,
    ) -> SnapshotWrite:
        """The snapshot of these blocks, in the store; one that is there already keeps its manifest unchanged.

        Args:
            architecture: torchvision's builder name.
            blocks: (block name, block) in model order; a block is its tensors, a `put_block`'s result or a digest.
            num_classes: outputs of the head.
            base: name or id of the snapshot it was fine-tuned from.
            retrain_index: how many blocks below the head were retrained.
            dataset: what it was trained on.
            preprocessing: what it expects of its input; torchvision's for ImageNet when None.
            metrics: figures by name; `val_accuracy` is what snapshots are compared by.
            train: the resolved training configuration.
            trial: id of the trial that made it.
            name: a name that shall stand for this snapshot from now on.

        Raises:
            StoreError: a block given by digest is not in the store, or the store can't be written.
        """
        if name is not None:
            check_ref_name(name)
        given = [(block_name, self._put(block)) for block_name, block in blocks]
        entries = tuple(BlockEntry(block_name, write.digest, write.num_bytes) for block_name, write in given)
        try:
            manifest = Manifest(
                id=snapshot_id(architecture, [(entry.name, entry.digest) for entry in entries]),
                architecture=architecture,
                num_classes=num_classes,
                blocks=entries,
                base=self.resolve(base) if base is not None else None,
                retrain_index=retrain_index,
                dataset=dataset,
                preprocessing=preprocessing or Preprocessing(),
                metrics=dict(metrics or {}),
                train=dict(train or {}),
                trial=trial,
                created=utc_timestamp(),
                raysnap_version=package_version() or "unknown",
            )
            content = manifest.to_bytes()
            if len(content) > MAX_MANIFEST_BYTES:
                raise ValueError(f"its manifest takes {len(content)} bytes, at most {MAX_MANIFEST_BYTES} can be read")
        except ValueError as error:
            raise StoreError(f"{architecture} snapshot can't be described: {_first_line(error)}") from None
        tensors = {entry.digest: block for entry, (_, block) in zip(entries, blocks, strict=True)}
        stored = self._publish_manifest(manifest, content, tensors)
        if name is not None:
            self.set_ref(name, manifest.id)
        new = {write.digest: write.num_bytes for _, write in given if write.is_new}
        return SnapshotWrite(stored or manifest, stored is None, len(new), sum(new.values()))

    def _put(self, block: Block) -> BlockWrite:
        if isinstance(block, BlockWrite):
            return block
        if isinstance(block, str):
            return BlockWrite(check_digest(block, "block digest"), self.block_bytes(block), is_new=False)
        return self.put_block(block)

    def _publish_manifest(self, manifest: Manifest, content: bytes, tensors: Mapping[str, Block]) -> Manifest | None:
        """Makes the manifest visible, its blocks before it; the one that stood there already, if any.

        The order draft, touch, publish is what `gc` relies on: see `garbage`.
        """
        target = self._files.snapshots_dir / f"{manifest.id}.json"
        for _ in range(MAX_ATTEMPTS):
            with self._files.staged("draft", [content]) as draft:
                missing = [entry for entry in manifest.blocks if not self._files.refresh(entry.digest, entry.num_bytes)]
                for entry in missing:
                    block = tensors[entry.digest]
                    if isinstance(block, str | BlockWrite):
                        raise StoreError(
                            f"block {entry.digest} ({entry.name}): expected it in {self.path}, found it gone: a gc of "
                            "shorter grace than this write took it; put block and snapshot again"
                        )
                    self.put_block(block)
                if missing:
                    continue
                with suppress(FileNotFoundError, StoreDamaged):
                    found = catalog.read_manifest(target)
                    self._files.sync(target)
                    return found
                self._files.sync_shards(entry.digest for entry in manifest.blocks)
                if self._files.publish(draft, target):
                    return None
        raise swept_away(target)

    def remove_snapshot(self, name_or_id: str) -> str:
        """The id of the snapshot that is gone now, with its names; its blocks go with the next `gc`.

        Raises:
            SnapshotNotFound: there is no such snapshot.
        """
        snapshot = self.resolve(name_or_id)
        catalog.remove_snapshot(self._files, snapshot)
        return snapshot

    def manifest(self, name_or_id: str) -> Manifest:
        """The manifest of the snapshot with this name, id, or unique beginning (6 characters or more) of an id.

        Raises:
            SnapshotNotFound: there is none, or more than one.
            StoreDamaged: its manifest or ref is damaged.
        """
        snapshot = self.resolve(name_or_id)
        try:
            return catalog.read_manifest(catalog.manifest_path(self._files, snapshot))
        except FileNotFoundError:
            raise SnapshotNotFound(f"{self.path}: snapshot {snapshot} was removed") from None

    def lineage(self, manifest: Manifest) -> list[Manifest]:
        """The snapshot's base, that one's base, and so on, as far as the store still has them."""
        chain: list[Manifest] = []
        seen = {manifest.id}
        while manifest.base is not None and manifest.base not in seen:
            seen.add(manifest.base)
            try:
                manifest = self.manifest(manifest.base)
            except SnapshotNotFound:
                break
            chain.append(manifest)
        return chain

    def resolve(self, name_or_id: str) -> str:
        """The full id of the snapshot that goes by this name, id or beginning of an id, as for `manifest`."""
        return catalog.resolve(self._files, name_or_id)

    def manifests(self, where: str | None = None) -> list[Manifest]:
        """The manifests of the snapshots that `where` admits, oldest first; damaged ones are logged and left out.

        For thousands of snapshots, `summaries` has what a listing needs at a fraction of the time and memory.
        """
        return list(self.iter_manifests(where))

    def iter_manifests(self, where: str | None = None) -> Iterator[Manifest]:
        """As `manifests`, one at a time."""
        for summary in self.summaries(where):
            try:
                yield catalog.read_manifest(catalog.manifest_path(self._files, summary.id))
            except FileNotFoundError:
                continue
            except StoreDamaged as error:
                logger.warning("snapshot %s is left out: %s", summary.id, error)

    def summaries(self, where: str | None = None) -> list[Summary]:
        """What the index knows of the snapshots that `where` admits, oldest first; no manifest is opened."""
        return index.list_summaries(self._files, where)

    # Names

    def refs(self) -> dict[str, str]:
        """Every name, in alphabetical order, and the snapshot id it stands for."""
        return index.list_refs(self._files)

    def names_of(self, snapshot: str) -> list[str]:
        """The names of the snapshot with this id, in alphabetical order."""
        return [name for name, target in self.refs().items() if target == snapshot]

    def set_ref(self, name: str, snapshot: str, expected: str | None = None) -> None:
        """Makes `name` stand for the snapshot with this id, if it stands for `expected` now.

        Args:
            name: letters, digits, '.', '_', '-'.
            snapshot: the id.
            expected: the id that it names until now, `ABSENT` for a new name, None for whatever.

        Raises:
            SnapshotNotFound: there is no such snapshot.
            StoreError: the name stands for another snapshot than `expected`; nothing is changed.
        """
        catalog.set_ref(self._files, name, snapshot, expected)

    def remove_ref(self, name: str, expected: str | None = None) -> None:
        """Takes a name away; its snapshot stays. Raises as `set_ref` does."""
        catalog.remove_ref(self._files, name, expected)

    # Upkeep

    def stats(self) -> dict[str, int]:
        """How many snapshots and blocks there are, and their bytes: on the disk, and if each snapshot were a copy."""
        summaries = self.summaries()
        block_sizes = [entry.stat().st_size for entry in self._files.objects()]
        return {
            "num_snapshots": len(summaries),
            "num_blocks": len(block_sizes),
            "block_bytes": sum(block_sizes),
            "bytes_on_disk": sum(block_sizes) + self._other_bytes(),
            "bytes_if_copied": sum(summary.num_bytes for summary in summaries),
        }

    def _other_bytes(self) -> int:
        """The bytes of everything in the store that is not a block."""
        files = self._files
        folders = (files.root, files.snapshots_dir, files.refs_dir, files.tmp_dir)
        entries = (entry for folder in folders for entry in entries_in(folder))
        total = 0
        for entry in entries:
            with suppress(FileNotFoundError):
                total += entry.stat().st_size if entry.is_file() else 0
        return total

    def verify(self) -> dict[str, Any]:
        """What is damaged, every byte of the store read: see `audit.verify`."""
        return verify(self._files)

    def gc(self, grace_s: float = DEFAULT_GRACE_S) -> dict[str, int]:
        """Deletes blocks that no snapshot needs and that were not touched for `grace_s`; safe beside writers.

        Raises:
            StoreDamaged: a manifest is damaged; nothing is deleted then.
            UsageError: the grace is negative.
        """
        if not 0 <= grace_s < 1e9:
            raise UsageError(f"grace: expected 0 seconds or more (at most 1e9), found {grace_s}")
        return collect_garbage(self._files, grace_s)


def canonical_block_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of the block's file."""
    from raysnap.models import tensor_bytes as objects

    return objects.canonical_block_bytes(tensors)


def block_digest(tensors: Mapping[str, Tensor]) -> str:
    """The digest that the block has in every store."""
    from raysnap.models import tensor_bytes as objects

    return objects.block_digest(tensors)


def _check_format(raw: bytes, path: Path) -> None:
    try:
        document = json.loads(raw)
        found, digest = document["format"], document.get("digest")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StoreDamaged(f'{path}: expected {{"digest":"blake3","format":{FORMAT}}}, found something else') from None
    if type(found) is int and found > FORMAT:
        raise StoreError(
            f"{path}: the store has format {found}, this raysnap knows {FORMAT} and touches nothing; use a newer one"
        )
    if type(found) is not int or found != FORMAT or digest != "blake3":
        shown = f"{found!r} with {digest!r}"[:200]
        raise StoreDamaged(f"{path}: expected format {FORMAT} with digest blake3, found {shown}")
    if raw != STORE_CONTENT:
        raise StoreDamaged(f"{path}: expected {STORE_CONTENT!r}, found {raw[:200]!r}; write it anew")


def _first_line(error: ValueError) -> str:
    details = getattr(error, "errors", None)
    if details is None:
        return str(error)
    fault = details(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in fault['loc']) or 'manifest'}: {fault['msg']}"
