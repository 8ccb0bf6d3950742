"""The model store: snapshots whose shared blocks are on the disk once.

Policy only: what is written in which order, and what is checked when. `tensor_bytes` turns blocks into bytes,
`backends` keep bytes, `garbage` says why deleting beside writers is safe, `index` lists. A snapshot exists if and only
if its manifest does, and then all its blocks do.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from raysnap.config.choices import UsageAxis
from raysnap.config.folders import StorePath, store_path
from raysnap.errors import (
    BlockDamaged,
    SnapshotNotFound,
    StoreDamaged,
    StoreError,
    StoreUnreadable,
    UsageError,
    WeightsError,
)
from raysnap.store import catalog, index, records, usage
from raysnap.store.audit import Verification, verify
from raysnap.store.backends.opening import open_place
from raysnap.store.backends.place import (
    RECORDS,
    REFS,
    SNAPSHOTS,
    TMP,
    Allocate,
    Needed,
    OnRead,
    Place,
    object_key,
)
from raysnap.store.copying import Copied, check_all_copied, copy_store
from raysnap.store.garbage import collect_garbage
from raysnap.store.index import Lineage, SnapshotSummary
from raysnap.store.manifest import (
    BlockEntry,
    DatasetRecord,
    Manifest,
    check_digest,
    check_ref_name,
)
from raysnap.store.new_snapshot import NewSnapshot, Origin
from raysnap.store.preprocessing import (
    TOKENIZER_TENSOR,
    AnyPreprocessing,
    Preprocessing,
    TokenizerEntry,
    tokenizer_object,
)
from raysnap.store.publishing import publish_manifest
from raysnap.store.records import RecordTable, StartRecord
from raysnap.store.store_file import check_or_create
from raysnap.store.usage import Freed, Usage

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

DEFAULT_GRACE_S = 3600.0


@dataclass(frozen=True)
class BlockWrite:
    """A block in the store: its digest, its bytes on the disk, and whether this write added it."""

    digest: str
    num_bytes: int
    is_new: bool


@dataclass(frozen=True)
class SnapshotWrite:
    """A snapshot in the store, and what storing it added: `new_blocks` blocks of `new_bytes` in all."""

    manifest: Manifest
    is_new: bool
    new_blocks: int
    new_bytes: int


Block: TypeAlias = Union[str, BlockWrite, "Mapping[str, Tensor]"]
"""A block to be stored: its tensors by name, a `put_block`'s result, or the digest of one that is in the store."""


class Store:
    """A model store in a folder or a bucket. Any number of processes may read and write it at once.

    >>> store = raysnap.Store.open("store")
    >>> store.manifest("base").num_classes
    4
    >>> [summary.retrain_index for summary in store.summaries("retrain_index <= 2")]
    [1, 1]
    >>> store.verify()["ok"]
    True

    Attributes:
        path: the store's folder, or its address in a bucket.
    """

    def __init__(self, path: StorePath, place: Place):
        self.path = path
        self._place = place

    @classmethod
    def open(cls, path: StorePath | str, create: bool = False, on_read: OnRead | None = None) -> Store:
        """Open the store in the folder `path` or at an address `s3://bucket/prefix`; with `create`, create a new one.

        `on_read` observes the reading of blocks, and may slow it down.

        Raises:
            StoreError: there is no store, the folder holds something else, or the store's format is newer.
            StoreDamaged: the store's own file, store.json, is damaged.
        """
        where = store_path(path)
        place = open_place(where, on_read)
        check_or_create(place, create)
        return cls(where, place)

    @classmethod
    def find(cls, path: StorePath | str) -> Store | None:
        """Open the store at `path` as `open` does; None where there is nothing yet."""
        where = store_path(path)
        return cls.open(where) if open_place(where).is_there() else None

    # Blocks

    def put_block(self, tensors: Mapping[str, Tensor]) -> BlockWrite:
        """Store the block of these tensors; one that is there already is not written again.

        Tensors may be on any device, strided in any way and share memory.

        Raises:
            WeightsError: a tensor can't be stored.
            StoreError: the store can't be written.
        """
        from raysnap.models import tensor_bytes  # imports torch, which listing a store can spare

        chunks = tensor_bytes.encode(tensors)
        return self._put_object(tensor_bytes.digest(chunks), tensor_bytes.num_bytes(chunks), chunks)

    def _put_object(self, digest: str, num_bytes: int, chunks: Sequence[bytes | memoryview]) -> BlockWrite:
        is_new = not self._place.has_object(digest, num_bytes)
        if is_new:
            self._place.put_object(digest, chunks)
        return BlockWrite(digest, num_bytes, is_new)

    def read_block(
        self, digest: str, device: torch.device | None = None, content: memoryview | None = None
    ) -> dict[str, Tensor]:
        """Return the block's tensors under torchvision's full names, as views of one private, writable buffer.

        Args:
            device: where the tensors are placed, for computing with them but not for training them: see
                `tensor_bytes.decode`. A GPU gets the whole block in one copy from pinned memory.
            content: what `read_bytes` gave; by default the file is read once, into memory which is then verified.

        Raises:
            BlockDamaged: the block is missing, or its bytes do not match its digest.
        """
        from raysnap.models import tensor_bytes

        if content is None:
            is_gpu = device is not None and device.type == "cuda"
            content = self.read_bytes(digest, tensor_bytes.pinned_memory if is_gpu else None)
        try:
            return tensor_bytes.decode(content, "its bytes", device)
        except WeightsError as error:
            raise self._damaged(digest, str(error)) from None

    def read_bytes(self, digest: str, allocate: Allocate | None = None) -> memoryview:
        """Return the verified bytes of a block, in memory of their own or that `allocate` gives; needs no torch."""
        try:
            return self._place.read_object(digest, allocate)
        except StoreDamaged as error:
            raise self._damaged(digest, str(error)) from None

    def put_tokenizer(self, content: bytes) -> TokenizerEntry:
        """Store a `tokenizer.json`, once, and return what names it in a `TextPreprocessing`; `gc` treats it as a block.

        Raises:
            StoreError: the store can't be written.
        """
        entry, stored = tokenizer_object(content)
        self._put_object(entry.digest, entry.num_bytes, [stored])
        return entry

    def read_tokenizer(self, digest: str) -> bytes:
        """Return the bytes of a `tokenizer.json`.

        Raises:
            BlockDamaged: it is missing, or its bytes do not match its digest.
        """
        tensors = self.read_block(digest)
        if list(tensors) != [TOKENIZER_TENSOR]:
            raise self._damaged(digest, "expected a tokenizer, found another block")
        return tensors[TOKENIZER_TENSOR].numpy().tobytes()

    def block_bytes(self, digest: str) -> int:
        """Return the length of the block's file.

        Raises:
            BlockDamaged: the block is missing.
        """
        try:
            return self._place.object_bytes(digest)
        except StoreDamaged as error:
            raise self._damaged(digest, str(error)) from None

    def _damaged(self, digest: str, problem: str) -> BlockDamaged:
        snapshots = tuple(self.snapshots_with([digest])[digest])
        shown = ", ".join(snapshot[:12] for snapshot in snapshots[:5]) + (", …" if len(snapshots) > 5 else "")
        breaks = f"it breaks {len(snapshots)} snapshot(s): {shown}" if snapshots else "no snapshot needs it"
        where = self._place.where(object_key(digest))
        return BlockDamaged(
            f"{where}: block damaged: {problem}; {breaks}. Copy the file from a backup, or "
            "remove it and add one of its snapshots again",
            digest,
            snapshots,
        )

    def snapshots_with(self, digests: Iterable[str]) -> dict[str, list[str]]:
        """Return, for each digest, the ids of the snapshots that contain this block."""
        return catalog.snapshots_with(self._place, digests)

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
        preprocessing: AnyPreprocessing | None = None,
        metrics: Mapping[str, float] | None = None,
        train: Mapping[str, Any] | None = None,
        trial: str | None = None,
        name: str | None = None,
    ) -> SnapshotWrite:
        """Store the snapshot of these blocks; one that is there already keeps its manifest unchanged.

        >>> store = raysnap.Store.open("store")
        >>> base = store.manifest("base")
        >>> blocks = [(block.name, store.read_block(block.digest)) for block in base.blocks]
        >>> mine = raysnap.Store.open("mine", create=True)
        >>> written = mine.put_snapshot(
        ...     architecture=base.architecture,
        ...     blocks=blocks,
        ...     num_classes=base.num_classes,
        ...     metrics={"val_accuracy": 0.75},
        ...     name="copy",
        ... )
        >>> written.manifest.id == base.id, written.new_blocks
        (True, 14)

        Args:
            architecture: torchvision's builder name.
            blocks: (block name, block) in model order; a block is its tensors, a `put_block`'s result or a digest.
            num_classes: number of outputs of the head.
            base: name or id of the snapshot that it was fine-tuned from.
            retrain_index: number of blocks retrained below the head.
            dataset: the dataset that it was trained on.
            preprocessing: how an item becomes its input, of texts with a tokenizer that is in the store;
                torchvision's for ImageNet when None.
            metrics: metrics by name; snapshots are compared by `val_accuracy`.
            train: the resolved training configuration.
            trial: id of the trial that made it.
            name: a name to give to this snapshot; it may be taken from another snapshot.

        Raises:
            StoreError: a block given by digest is not in the store, a value is out of range, or the store can't be
                written.
        """
        if name is not None:
            check_ref_name(name)
        writes = [(block_name, self._put(block)) for block_name, block in blocks]
        entries = tuple(BlockEntry(block_name, write.digest, write.num_bytes) for block_name, write in writes)
        base_id = self.resolve(base) if base is not None else None
        origin = Origin(base_id, retrain_index, dataset, train or {}, trial)
        new = NewSnapshot(architecture, num_classes, preprocessing or Preprocessing(), metrics or {}, origin)
        manifest, content = new.manifest(entries)
        given = {entry.digest: block for entry, (_, block) in zip(entries, blocks, strict=True)}
        stored = publish_manifest(self._place, manifest, content, partial(self._supply, given))
        if name is not None:
            self.set_ref(name, manifest.id)
        new_bytes = {write.digest: write.num_bytes for _, write in writes if write.is_new}
        return SnapshotWrite(stored or manifest, stored is None, len(new_bytes), sum(new_bytes.values()))

    def _put(self, block: Block) -> BlockWrite:
        if isinstance(block, BlockWrite):
            return block
        if isinstance(block, str):
            return BlockWrite(check_digest(block, "block digest"), self.block_bytes(block), is_new=False)
        return self.put_block(block)

    def _supply(self, given: Mapping[str, Block], needed: Needed) -> None:
        """Write a block again that a `gc` deleted since it was put, if its tensors were given."""
        block = given.get(needed.digest, needed.digest)
        if isinstance(block, str | BlockWrite):
            name = needed.name if isinstance(needed, BlockEntry) else "tokenizer"
            raise StoreError(
                f"block {needed.digest} ({name}): expected it in {self.path}, found it gone: a gc with a grace shorter "
                "than this write deleted it; put block and snapshot again"
            )
        self.put_block(block)

    def remove_snapshot(self, name_or_id: str) -> str:
        """Remove the snapshot and its names, and return its id; the next `gc` deletes its blocks.

        Raises:
            SnapshotNotFound: there is no such snapshot.
        """
        snapshot = self.resolve(name_or_id)
        self.remove_snapshots([snapshot])
        return snapshot

    def remove_snapshots(self, snapshots: Collection[str]) -> None:
        """Remove the snapshots with these ids, and their names; `freed_by` says what the next `gc` then deletes."""
        catalog.remove_snapshots(self._place, snapshots, index.other_names(self._place, snapshots))

    def freed_by(self, snapshots: Collection[str]) -> Freed:
        """Return what `gc` would delete if the snapshots with these ids were removed; changes nothing."""
        return usage.count_freed(self._place, snapshots)

    def usage(self, by: UsageAxis = "lineage") -> Usage:
        """Return who holds which bytes of the store.

        >>> [group.group for group in raysnap.Store.open("store").usage("architecture").groups]
        ['mobilenet_v3_small']
        """
        return usage.measure_usage(self._place, self.summaries(), by)

    def manifest(self, name_or_id: str) -> Manifest:
        """Return the manifest of the snapshot with this name, id, or unique prefix (6 characters or more) of an id.

        Raises:
            SnapshotNotFound: there is none, or more than one.
            StoreDamaged: its manifest or ref is damaged.
        """
        snapshot = self.resolve(name_or_id)
        try:
            return catalog.read_manifest(self._place, snapshot)
        except FileNotFoundError:
            raise SnapshotNotFound(f"{self.path}: snapshot {snapshot} was removed") from None

    def read_state_dict(self, name_or_id: str) -> dict[str, Tensor]:
        """Return the snapshot's tensors by the library's names: what `load_state_dict(strict=True)` takes.

        Raises:
            SnapshotNotFound: there is no such snapshot.
            BlockDamaged: a block is missing or damaged.
            WeightsError: the blocks are intact, but not those of the architecture.
        """
        from raysnap.models.blocks import split_state_dict

        manifest = self.manifest(name_or_id)
        tensors: dict[str, Tensor] = {}
        for entry in manifest.blocks:
            tensors |= self.read_block(entry.digest)
        blocks = split_state_dict(manifest.architecture, tensors)
        return {name: value for _, block in blocks for name, value in block.items()}

    def load_model(self, name_or_id: str) -> nn.Module:
        """Return the snapshot as a model of the library's own class, in eval mode, on the CPU.

        >>> model = raysnap.Store.open("store").load_model("base")
        >>> type(model).__name__, model.training
        ('MobileNetV3', False)

        Its input is what `manifest(name_or_id).preprocessing` describes.

        Raises:
            SnapshotNotFound: there is no such snapshot.
            BlockDamaged: a block is missing or damaged.
            WeightsError: the blocks are intact, but not those of the architecture.
        """
        from raysnap.models.families.family import build

        manifest = self.manifest(name_or_id)
        state_dict = self.read_state_dict(manifest.id)
        return build(manifest.architecture, manifest.num_classes, state_dict)

    def lineage(self, manifest: Manifest) -> list[Manifest]:
        """Return the snapshot's base, the base of that, and so on, as far as they are in the store."""
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

    def resolve(self, name_or_id: str, *, by_prefix: bool = False) -> str:
        """Return the full id of the snapshot with this name, id or prefix of an id; raise as `manifest` does.

        With `by_prefix`, the beginning of names will do, too, if they all are one snapshot's.
        """
        return catalog.resolve(self._place, name_or_id, by_prefix=by_prefix)

    def manifests(self, where: str | None = None) -> list[Manifest]:
        """Return the manifests of the snapshots that match `where`, oldest first; damaged ones are logged and left out.

        For thousands of snapshots, `summaries` has what a listing needs in a fraction of the time and memory.
        """
        return list(self.iter_manifests(where))

    def iter_manifests(self, where: str | None = None) -> Iterator[Manifest]:
        """Yield what `manifests` returns, one at a time."""
        return self.manifests_of(summary.id for summary in self.summaries(where))

    def manifests_of(self, snapshots: Iterable[str]) -> Iterator[Manifest]:
        """Yield the manifests of the snapshots with these ids; missing and (logged) unreadable ones are left out."""
        yield from (found for found in self._place.map(self._manifest_or_none, snapshots) if found is not None)

    def _manifest_or_none(self, snapshot: str) -> Manifest | None:
        try:
            return catalog.read_manifest(self._place, snapshot)
        except FileNotFoundError:
            return None
        except (StoreDamaged, StoreUnreadable) as error:
            logger.warning("snapshot %s is left out: %s", snapshot, error)
            return None

    def summaries(self, where: str | None = None) -> list[SnapshotSummary]:
        """Return what the index knows of the snapshots that match `where`, oldest first; no manifest is opened."""
        return index.list_summaries(self._place, where)

    def to_pandas(self, where: str | None = None) -> pd.DataFrame:
        """Return the snapshots that match `where` as a data frame, a row each, oldest first.

        >>> table = raysnap.Store.open("store").to_pandas("retrain_index == 1")
        >>> table[["architecture", "retrain_index", "num_blocks"]]
                 architecture  retrain_index  num_blocks
        0  mobilenet_v3_small              1          14
        1  mobilenet_v3_small              1          14

        The columns are the fields of `where`: `id`, `name` (of several the first), `architecture`, `dataset`,
        `retrain_index`, `accuracy`, `num_classes`, `num_blocks`, `num_bytes`, `image_size`, `body`, `base`, `trial`,
        `created`, and `metrics.NAME` for each metric that any of the snapshots has. A field that a snapshot lacks is
        missing (NA).

        Raises:
            UsageError: `where` is not an expression over snapshots.
        """
        return index.to_pandas(self.summaries(where), index.list_metrics(self._place))

    # Records

    def put_record(self, record: StartRecord) -> str:
        """Store what came of a fine-tune from a snapshot, and return the record's digest; a repeat changes nothing.

        Raises:
            StoreError: the store can't be written.
        """
        return records.put_record(self._place, record)

    def records(self) -> Iterator[StartRecord]:
        """Yield what came of the fine-tunes from this store's snapshots; damaged records are logged and left out.

        >>> [record.start.architecture for record in raysnap.Store.open("store").records()]
        []
        """
        return records.iter_records(self._place)

    def record_of(self, manifest: Manifest) -> StartRecord | None:
        """Return the record of the fine-tune that made this snapshot; None where there is none."""
        return records.find_record(self._place, manifest)

    def record_table(self) -> RecordTable:
        """Return what ranking starts needs of all records, from a cache that is rebuilt where it is stale."""
        return records.read_table(self._place)

    def lineages(self, where: str | None = None) -> list[Lineage]:
        """Return where each snapshot comes from, by id, and whether it matches `where`."""
        return index.list_lineages(self._place, where)

    # Names

    def refs(self) -> dict[str, str]:
        """Return the snapshot id of every name, in alphabetical order."""
        return index.list_refs(self._place)

    def names_of(self, snapshot: str) -> list[str]:
        """Return the names of the snapshot with this id, in alphabetical order."""
        return [name for name, target in self.refs().items() if target == snapshot]

    def set_ref(self, name: str, snapshot: str, expected: str | None = None) -> None:
        """Make `name` refer to the snapshot with this id, if it refers to `expected` now.

        Args:
            name: letters, digits, '.', '_', '-'.
            snapshot: the id.
            expected: the id that it must refer to now; `catalog.ABSENT` for a new name; None for any.

        Raises:
            SnapshotNotFound: there is no such snapshot.
            StoreError: the name refers to another snapshot than `expected`; nothing is changed.
        """
        catalog.set_ref(self._place, name, snapshot, expected)

    def give_name(self, name: str, snapshot: str) -> str:
        """Name the snapshot with this id without taking the name from another one, and return the name that it got.

        >>> store = raysnap.Store.open("store")
        >>> snapshots = [summary.id for summary in store.summaries("retrain_index == 1")]
        >>> [store.give_name("best", snapshot) for snapshot in snapshots]
        ['best', 'best-2']

        Raises:
            SnapshotNotFound: there is no such snapshot.
            StoreError: the store can't be written.
        """
        return catalog.give_name(self._place, name, snapshot)

    def remove_ref(self, name: str, expected: str | None = None) -> None:
        """Remove a name; its snapshot stays. Raise as `set_ref` does."""
        catalog.remove_ref(self._place, name, expected)

    # Upkeep

    def copy_to(self, target: Store, where: str | None = None) -> Copied:
        """Copy the snapshots that match `where`, with their names and all records, to another store.

        >>> store = raysnap.Store.open("store")
        >>> store.copy_to(raysnap.Store.open("second", create=True)).num_snapshots
        3
        >>> store.copy_to(raysnap.Store.open("second")).num_blocks
        0

        What is there already is not sent again; a name that another snapshot has there stays with it.

        Raises:
            StoreDamaged: something here is damaged; a damaged manifest leaves the rest copied, anything else what came
                before it.
            StoreError: something can't be read here or written there.
        """
        snapshots = [summary.id for summary in self.summaries(where)]
        copied = copy_store(self._place, target._place, snapshots, self.refs())
        check_all_copied(self._place, {summary.id for summary in self.summaries()})
        return copied

    def stats(self) -> dict[str, int]:
        """Count snapshots, blocks and their bytes: on the disk, and if each snapshot were a full copy."""
        summaries = self.summaries()
        block_sizes = [entry.num_bytes for entry in self._place.objects()]
        return {
            "num_snapshots": len(summaries),
            "num_blocks": len(block_sizes),
            "block_bytes": sum(block_sizes),
            "bytes_on_disk": sum(block_sizes) + self._other_bytes(),
            "bytes_if_copied": sum(summary.num_bytes for summary in summaries),
        }

    def _other_bytes(self) -> int:
        """Return the bytes of everything in the store that is not a block."""
        folders = ("", SNAPSHOTS, REFS, TMP, RECORDS)
        return sum(entry.num_bytes for folder in folders for entry in self._place.entries(folder))

    def verify(self) -> Verification:
        """Read every byte of the store and return what is damaged, changing nothing."""
        return verify(self._place)

    def gc(self, grace_s: float = DEFAULT_GRACE_S) -> dict[str, int]:
        """Delete blocks that no snapshot needs and that were not touched for `grace_s` seconds; safe beside writers.

        Raises:
            StoreDamaged: a manifest is damaged; nothing is deleted then.
            UsageError: the grace is negative.
        """
        if not 0 <= grace_s < 1e9:
            raise UsageError(f"grace: expected 0 seconds or more (at most 1e9), found {grace_s}")
        return collect_garbage(self._place, grace_s)


@dataclass(frozen=True)
class TokenizerReader:
    """Reads tokenizers from a store that is opened only where one is needed."""

    path: StorePath

    def __call__(self, digest: str) -> bytes:
        """Return the bytes of a `tokenizer.json`."""
        return Store.open(self.path).read_tokenizer(digest)
