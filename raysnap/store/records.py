"""What came of fine-tunes from stored snapshots: a small file each, named by its content, and a cache of all.

STORE/records holds one canonical JSON file per fine-tune, whose name is the BLAKE3 of its bytes: the same fine-tune
recorded twice is one file, and copying the files of two stores into one folder merges them. `gc` never looks there.
STORE/records.cache holds what ranking starts needs of all records; it is rebuilt whenever it is missing or stale.
"""

from __future__ import annotations

import io
import json
import logging
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from blake3 import blake3
from pydantic import Field, ValidationError, field_validator

from raysnap.canonical_json import canonical_json, parse_json
from raysnap.errors import StoreDamaged, StoreError, StoreUnreadable
from raysnap.store.files import Files, entries_in, read_bounded, read_error
from raysnap.store.index import SETTLED_NS
from raysnap.store.manifest import Count, Digest, Manifest, Text, is_digest
from raysnap.store.preprocessing import Record

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

RECORD_FORMAT: Final = 1
MAX_RECORD_BYTES = 2**20
MAX_CACHE_BYTES = 2**32
CACHE_VERSION = 1


class StartFacts(Record):
    """The snapshot that a fine-tune started from, with what ranking needs once the snapshot itself is gone."""

    snapshot: Digest
    architecture: Text
    lineage: tuple[Digest, ...] = Field((), max_length=10_000, description="Its base, the base of that, and so on.")
    dataset: Text | None = Field(None, description="What the start was trained on; null if unknown.")


class TargetFacts(Record):
    """The dataset of a fine-tune, and how many items of it were used."""

    kind: Literal["image_classification"] = "image_classification"
    name: Text
    digest: Text
    num_classes: Count
    num_train: Count
    num_val: Count
    num_test: Count


class Recipe(Record):
    """How a fine-tune trained; equal recipes of two starts on one dataset are compared."""

    retrain_index: int | None = Field(None, ge=0, le=100_000, description="null retrains all blocks.")
    image_size: Count
    seed: Count
    train: dict[str, Any] = Field(description="The resolved training configuration.")

    @field_validator("train")
    @classmethod
    def _train_is_plain_json(cls, train: dict[str, Any]) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads(canonical_json(train))
        return plain


class SearchedFrom(Record):
    """What a search had said of the start before it was fine-tuned.

    Attributes:
        expected_loss: of the search's winner.
    """

    method: Text
    proxy: Text
    rank: Count
    num_candidates: Count
    score: float
    num_train: Count
    num_test: Count
    expected_loss: float | None = None


class StartRecord(Record):
    """What came of one fine-tune from a stored snapshot.

    Attributes:
        num_epochs: epochs trained; a scheduler may have stopped it before the last of its recipe.
        metrics: of the kept epoch; `val_accuracy` is what starts are compared by.
    """

    format: Literal[1] = RECORD_FORMAT
    start: StartFacts
    dataset: TargetFacts
    recipe: Recipe
    num_epochs: Count
    is_stopped: bool = False
    metrics: dict[str, float] = Field(max_length=10_000)
    searched: SearchedFrom | None = None

    def to_bytes(self) -> bytes:
        """Return the file's bytes: canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def field_key(self) -> tuple[str, int, int]:
        """What starts must have in common to be compared: the dataset, how many items of it, and the planned epochs."""
        return self.dataset.digest, self.dataset.num_train, int(self.recipe.train.get("epochs", 0))


class Comparison(NamedTuple):
    """One fine-tune and the same recipe from the start's own base.

    Attributes:
        gain: val accuracy of the record less that of its base's.
    """

    record: StartRecord
    of_base: StartRecord
    gain: float


def parse_record(raw: bytes, where: str, digest: str) -> StartRecord:
    """Parse the record in a file's bytes.

    Raises:
        StoreDamaged: the bytes are not those of the record with this digest.
    """
    found = blake3(raw).hexdigest()
    if found != digest:
        raise StoreDamaged(f"{where}: damaged: expected bytes with the BLAKE3 of its name, found {found}")
    try:
        record = StartRecord.model_validate(parse_json(raw))
        is_canonical = record.to_bytes() == raw
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(str(part) for part in fault["loc"])
        raise StoreDamaged(f"{where}: not a record of format {RECORD_FORMAT}: {path}: {fault['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise StoreDamaged(f"{where}: not a record: {error}") from None
    if not is_canonical:
        raise StoreDamaged(f"{where}: expected canonical JSON, found the same values formatted differently")
    return record


def put_record(files: Files, record: StartRecord) -> str:
    """Store the record and return its digest; one that is there already is not written again.

    Raises:
        StoreError: the store can't be written.
    """
    content = record.to_bytes()
    if len(content) > MAX_RECORD_BYTES:
        raise StoreError(f"record: expected at most {MAX_RECORD_BYTES} bytes, found {len(content)}")
    digest = blake3(content).hexdigest()
    files.create_records_dir()
    target = _path(files, digest)
    if not target.exists():
        files.write(target, content)
    return digest


def read_record(files: Files, digest: str) -> StartRecord:
    """Read the record with this digest.

    Raises:
        FileNotFoundError: there is none.
        StoreDamaged: it is damaged.
    """
    path = _path(files, digest)
    try:
        return parse_record(read_bounded(path, MAX_RECORD_BYTES), str(path), digest)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise read_error(path, error, f"{path}: can't be read") from None


def iter_records(files: Files) -> Iterator[StartRecord]:
    """Yield all records in the order of their names; damaged ones are logged and left out."""
    yield from (record for _, record in _read_all(files, sorted(record_digests(files))))


def find_record(files: Files, manifest: Manifest) -> StartRecord | None:
    """Return the record of the fine-tune that made a snapshot; None where there is none.

    Of the records only those are parsed that name the snapshot's base.
    """
    if manifest.base is None:
        return None
    wanted = manifest.base.encode()
    for digest in sorted(record_digests(files)):
        with suppress(OSError, StoreDamaged):
            raw = read_bounded(_path(files, digest), MAX_RECORD_BYTES)
            if wanted not in raw:
                continue
            record = parse_record(raw, str(_path(files, digest)), digest)
            is_same = record.metrics == manifest.metrics and record.recipe.train == manifest.train
            if is_same and (record.start.snapshot, record.recipe.retrain_index) == (
                manifest.base,
                manifest.retrain_index,
            ):
                return record
    return None


def record_digests(files: Files) -> list[str]:
    """Return the names of all records, in no particular order; a store without records has none."""
    if not files.records_dir.is_dir():
        return []
    names = (entry.name for entry in entries_in(files.records_dir) if entry.name.endswith(".json"))
    return [name.removesuffix(".json") for name in names if is_digest(name.removesuffix(".json"))]


def compare_with_bases(records: Iterable[StartRecord]) -> list[Comparison]:
    """Return each record whose recipe was also run from a snapshot of its start's lineage, with that one's result."""
    known: dict[tuple[str, bytes], StartRecord] = {}
    listed = list(records)
    for record in listed:
        known[record.start.snapshot, _question(record)] = record
    found = []
    for record in listed:
        question = _question(record)
        ours = record.metrics.get("val_accuracy")
        for base in record.start.lineage:
            other = known.get((base, question))
            theirs = other.metrics.get("val_accuracy") if other else None
            if other is not None and ours is not None and theirs is not None:
                found.append(Comparison(record, other, ours - theirs))
                break
    return found


def _question(record: StartRecord) -> bytes:
    """Return what two fine-tunes have in common that differ in their starts only."""
    return canonical_json([record.dataset.model_dump(mode="json"), record.recipe.model_dump(mode="json")])


def _path(files: Files, digest: str) -> Path:
    return files.records_dir / f"{digest}.json"


def _read_all(files: Files, digests: Sequence[str]) -> Iterator[tuple[str, StartRecord]]:
    for digest in digests:
        try:
            yield digest, read_record(files, digest)
        except FileNotFoundError:
            continue
        except (StoreDamaged, StoreUnreadable) as error:
            logger.warning("a record is left out: %s", error)


# The cache


@dataclass(frozen=True)
class RecordTable:
    """What ranking starts needs of all records: arrays with an entry per record `R`, and what their numbers mean.

    Attributes:
        digests_R32: the records' digests, sorted.
        starts_R, fields_R: positions in `starts` and `fields`.
        values_R: val accuracies.
        starts: the id, the architecture and the root of the lineage of each start.
        fields: dataset digest, training items and epochs: what starts must have in common to be compared.
    """

    digests_R32: np.ndarray
    starts_R: np.ndarray
    fields_R: np.ndarray
    values_R: np.ndarray
    starts: list[tuple[str, str, str]]
    fields: list[tuple[str, int, int]]

    def __len__(self) -> int:
        return len(self.values_R)


def read_table(files: Files) -> RecordTable:
    """Return the table of all records, from the cache where it is up to date; damaged records are logged and left out.

    Records without a val accuracy are in no ranking, and in the table with NaN.
    """
    if not files.records_dir.is_dir():
        return _table_of([])
    path = files.root / "records.cache"
    mtime_ns = files.records_dir.stat().st_mtime_ns
    known, stamp_ns = _load(path)
    if known is not None and stamp_ns == mtime_ns:
        return known
    names = sorted(record_digests(files))
    before = _digests_of(known) if known is not None else []
    is_settled = files.now_ns() - mtime_ns > SETTLED_NS
    if known is None or names != before:
        entries = dict(zip(before, _entries_of(known), strict=True)) if known is not None else {}
        added = [digest for digest in names if digest not in entries]
        entries |= {digest: _entry(record) for digest, record in _read_all(files, added)}
        known = _table_of([(digest, entries[digest]) for digest in names if digest in entries])
    with suppress(StoreError):  # a read-only store can still be ranked
        files.write(path, _dump(known, mtime_ns if is_settled else 0))
    return known


def table_of(records: Iterable[StartRecord]) -> RecordTable:
    """Return the table of these records."""
    return _table_of([(blake3(record.to_bytes()).hexdigest(), _entry(record)) for record in records])


_Entry = tuple[tuple[str, str, str], tuple[str, int, int], float]


def _entry(record: StartRecord) -> _Entry:
    start = record.start
    root = start.lineage[-1] if start.lineage else start.snapshot
    value = record.metrics.get("val_accuracy", float("nan"))
    return (start.snapshot, start.architecture, root), record.field_key, value


def _table_of(entries: Sequence[tuple[str, _Entry]]) -> RecordTable:
    import numpy as np

    starts: dict[tuple[str, str, str], int] = {}
    fields: dict[tuple[str, int, int], int] = {}
    starts_R = [starts.setdefault(start, len(starts)) for _, (start, _, _) in entries]
    fields_R = [fields.setdefault(key, len(fields)) for _, (_, key, _) in entries]
    digests = b"".join(bytes.fromhex(digest) for digest, _ in entries)
    return RecordTable(
        np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32),
        np.array(starts_R, dtype=np.int32),
        np.array(fields_R, dtype=np.int32),
        np.array([value for _, (_, _, value) in entries], dtype=np.float64),
        list(starts),
        list(fields),
    )


def _digests_of(table: RecordTable) -> list[str]:
    text = table.digests_R32.tobytes().hex()
    return [text[start : start + 64] for start in range(0, len(text), 64)]


def _entries_of(table: RecordTable) -> list[_Entry]:
    numbers = zip(table.starts_R.tolist(), table.fields_R.tolist(), table.values_R.tolist(), strict=True)
    return [(table.starts[start], table.fields[field], value) for start, field, value in numbers]


def _dump(table: RecordTable, mtime_ns: int) -> bytes:
    """Return the cache's bytes: arrays without pickles, the names in one of them, each part with its CRC-32."""
    import numpy as np

    names = {"version": CACHE_VERSION, "mtime_ns": mtime_ns, "starts": table.starts, "fields": table.fields}
    packed = zlib.compress(json.dumps(names).encode(), 1)
    written = io.BytesIO()
    np.savez(
        written,
        names=np.frombuffer(packed, dtype=np.uint8),
        digests=table.digests_R32,
        starts=table.starts_R,
        fields=table.fields_R,
        values=table.values_R,
    )
    return written.getvalue()


def _load(path: Path) -> tuple[RecordTable | None, int]:
    """Return the cached table, and the time of the folder that it was settled at; none where it can't be used."""
    import numpy as np

    try:
        with np.load(io.BytesIO(read_bounded(path, MAX_CACHE_BYTES)), allow_pickle=False) as arrays:
            names = json.loads(zlib.decompress(arrays["names"].tobytes()))
            if names["version"] != CACHE_VERSION:
                return None, 0
            table = RecordTable(
                arrays["digests"],
                arrays["starts"],
                arrays["fields"],
                arrays["values"],
                [(snapshot, architecture, root) for snapshot, architecture, root in names["starts"]],
                [(digest, num_train, epochs) for digest, num_train, epochs in names["fields"]],
            )
            return table, names["mtime_ns"]
    except FileNotFoundError:
        return None, 0
    except (OSError, ValueError, KeyError, TypeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        logger.info("%s can't be used (%s): rebuilding it", path, error)
        return None, 0
