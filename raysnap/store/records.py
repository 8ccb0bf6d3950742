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
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from blake3 import blake3
from pydantic import Field, ValidationError, field_validator

from raysnap.canonical_json import canonical_json, parse_json
from raysnap.errors import StoreDamaged, StoreError, StoreUnreadable
from raysnap.store.backends.place import RECORDS, Place
from raysnap.store.index import SETTLED_NS
from raysnap.store.manifest import Manifest, Text, is_digest
from raysnap.store.preprocessing import Count, Digest, Record

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

RECORD_FORMAT: Final = 1
CACHE_KEY = "records.cache"
MAX_RECORD_BYTES = 2**20
MAX_CACHE_BYTES = 2**32
CACHE_VERSION = 3
CRC_BYTES = 4


class StartFacts(Record):
    """The snapshot that a fine-tune started from, with what ranking needs once the snapshot itself is gone."""

    snapshot: Digest
    architecture: Text
    lineage: tuple[Digest, ...] = Field((), max_length=10_000, description="Its base, the base of that, and so on.")
    dataset: Text | None = Field(None, description="What the start was trained on; null if unknown.")


class TargetFacts(Record):
    """The dataset of a fine-tune, and how many items of it were used."""

    kind: Literal["image_classification", "text_classification"] = "image_classification"
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


def put_record(place: Place, record: StartRecord) -> str:
    """Store the record and return its digest; one that is there already is not written again.

    Raises:
        StoreError: the store can't be written.
    """
    content = record.to_bytes()
    if len(content) > MAX_RECORD_BYTES:
        raise StoreError(f"record: expected at most {MAX_RECORD_BYTES} bytes, found {len(content)}")
    digest = blake3(content).hexdigest()
    place.create(_key(digest), content)
    return digest


def copy_record(source: Place, target: Place, digest: str) -> None:
    """Copy the record with this digest as it is; raise as `read_record` does."""
    target.create(_key(digest), read_record(source, digest).to_bytes())


def read_record(place: Place, digest: str) -> StartRecord:
    """Read the record with this digest.

    Raises:
        FileNotFoundError: there is none.
        StoreDamaged: it is damaged.
    """
    key = _key(digest)
    return parse_record(place.read(key, MAX_RECORD_BYTES), place.where(key), digest)


def iter_records(place: Place) -> Iterator[StartRecord]:
    """Yield all records in the order of their names; damaged ones are logged and left out."""
    yield from (record for _, record in _read_all(place, sorted(record_digests(place))))


def find_record(place: Place, manifest: Manifest) -> StartRecord | None:
    """Return the record of the fine-tune that made a snapshot; None where there is none.

    Of the records only those are parsed that name the snapshot's base.
    """
    if manifest.base is None:
        return None
    wanted = manifest.base.encode()

    def parse_if_wanted(digest: str) -> StartRecord | None:
        with suppress(FileNotFoundError, StoreDamaged, StoreUnreadable):
            raw = place.read(_key(digest), MAX_RECORD_BYTES)
            return parse_record(raw, place.where(_key(digest)), digest) if wanted in raw else None
        return None

    for record in place.map(parse_if_wanted, sorted(record_digests(place))):
        if record is None or record.metrics != manifest.metrics or record.recipe.train != manifest.train:
            continue
        if (record.start.snapshot, record.recipe.retrain_index) == (manifest.base, manifest.retrain_index):
            return record
    return None


def record_digests(place: Place) -> list[str]:
    """Return the names of all records, in no particular order; a store without records has none."""
    names = (name for name in place.names(RECORDS) if name.endswith(".json"))
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


def _key(digest: str) -> str:
    return f"{RECORDS}/{digest}.json"


def _read_all(place: Place, digests: Sequence[str]) -> Iterator[tuple[str, StartRecord]]:
    def read_one(digest: str) -> StartRecord | None:
        try:
            return read_record(place, digest)
        except FileNotFoundError:
            return None
        except (StoreDamaged, StoreUnreadable) as error:
            logger.warning("a record is left out: %s", error)
            return None

    for digest, record in zip(digests, place.map(read_one, digests), strict=True):
        if record is not None:
            yield digest, record


# The cache


@dataclass(frozen=True)
class RecordTable:
    """What ranking starts needs of all records.

    Arrays have an entry per record `R`, start `T`, or pair `P` of a start and a dataset that it stood on.

    Attributes:
        digests_R32: the records' digests, sorted.
        starts_R, fields_R: positions in `starts` and `fields`.
        values_R: val accuracies.
        starts: the ids of the starts.
        architectures_T, roots_T: positions in `architectures` and `roots`, the first snapshots of lineages.
        fields: dataset digest, training items and epochs: what starts must have in common to be compared.
        datasets: the digests of the datasets of pairs.
        starts_P, datasets_P: positions in `starts` and `datasets`.
        standing_P: each pair's place among all starts on that dataset, 0 for the worst to 1 for the best.
    """

    digests_R32: np.ndarray
    starts_R: np.ndarray
    fields_R: np.ndarray
    values_R: np.ndarray
    architectures_T: np.ndarray
    roots_T: np.ndarray
    starts_P: np.ndarray
    datasets_P: np.ndarray
    standing_P: np.ndarray
    starts: list[str]
    architectures: list[str]
    roots: list[str]
    fields: list[tuple[str, int, int]]
    datasets: list[str]

    def __len__(self) -> int:
        return len(self.values_R)

    def count_elsewhere(self, asked: str) -> int:
        """Return how many records are of another dataset than the one asked about."""
        import numpy as np

        is_other_F = np.array([digest != asked for digest, _, _ in self.fields], dtype=bool)
        return int(np.count_nonzero(is_other_F[self.fields_R])) if len(self) else 0


def read_table(place: Place) -> RecordTable:
    """Return the table of all records, from the cache where it is up to date; damaged ones are logged and left out."""
    changed_ns = place.last_change(RECORDS)
    known, stamp_ns = _load(place)
    if known is not None and stamp_ns == changed_ns:
        return known
    names = sorted(record_digests(place))
    if known is None and not names:
        return _table_of([])
    before = _digests_of(known) if known is not None else []
    is_current = known is not None and names == before
    if known is None or not is_current:
        entries = dict(zip(before, _entries_of(known), strict=True)) if known is not None else {}
        added = [digest for digest in names if digest not in entries]
        entries |= {digest: _entry(record) for digest, record in _read_all(place, added)}
        known = _table_of([(digest, entries[digest]) for digest in names if digest in entries])
    is_settled = changed_ns is not None and place.now_ns() - changed_ns > SETTLED_NS
    if is_settled or not is_current:
        with suppress(StoreError):  # a read-only store can still be ranked
            place.write(CACHE_KEY, _dump(known, changed_ns or 0 if is_settled else 0))
    return known


def table_of(records: Iterable[StartRecord]) -> RecordTable:
    """Return the table of these records."""
    return _table_of([(blake3(record.to_bytes()).hexdigest(), _entry(record)) for record in records])


class _Entry(NamedTuple):
    """What the table holds of one record."""

    start: str
    architecture: str
    root: str
    field: tuple[str, int, int]
    value: float


def _entry(record: StartRecord) -> _Entry:
    start = record.start
    root = start.lineage[-1] if start.lineage else start.snapshot
    value = record.metrics.get("val_accuracy", float("nan"))
    return _Entry(start.snapshot, start.architecture, root, record.field_key, value)


def _table_of(entries: Sequence[tuple[str, _Entry]]) -> RecordTable:
    import numpy as np

    starts: dict[str, int] = {}
    architectures: dict[str, int] = {}
    roots: dict[str, int] = {}
    fields: dict[tuple[str, int, int], int] = {}
    of_start: list[tuple[int, int]] = []
    starts_R, fields_R = [], []
    for _, entry in entries:
        if entry.start not in starts:
            starts[entry.start] = len(starts)
            architecture = architectures.setdefault(entry.architecture, len(architectures))
            of_start.append((architecture, roots.setdefault(entry.root, len(roots))))
        starts_R.append(starts[entry.start])
        fields_R.append(fields.setdefault(entry.field, len(fields)))
    facts_T2 = np.array(of_start, dtype=np.int32).reshape(-1, 2)
    values_R = np.array([entry.value for _, entry in entries], dtype=np.float64)
    datasets = list(dict.fromkeys(digest for digest, _, _ in fields))
    dataset_F = np.array([datasets.index(digest) for digest, _, _ in fields], dtype=np.int64)
    pairs = stand(np.array(starts_R, dtype=np.int64), np.array(fields_R, dtype=np.int64), values_R, dataset_F)
    digests = b"".join(bytes.fromhex(digest) for digest, _ in entries)
    return RecordTable(
        np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32),
        np.array(starts_R, dtype=np.int32),
        np.array(fields_R, dtype=np.int32),
        values_R,
        facts_T2[:, 0],
        facts_T2[:, 1],
        *pairs,
        list(starts),
        list(architectures),
        list(roots),
        list(fields),
        datasets,
    )


def stand(
    starts_R: np.ndarray, fields_R: np.ndarray, values_R: np.ndarray, dataset_F: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the start, the dataset and the standing of each pair of a start and a dataset that it was compared on.

    Of several fine-tunes of a start that are compared, the best one counts. A dataset that starts were compared on in
    several ways counts once: the mean.
    """
    import numpy as np

    is_known_R = np.isfinite(values_R)
    num_starts = int(starts_R.max(initial=0)) + 1
    key_P, which_R = np.unique(fields_R[is_known_R] * num_starts + starts_R[is_known_R], return_inverse=True)
    best_P = np.full(len(key_P), -np.inf)
    np.maximum.at(best_P, which_R, values_R[is_known_R])
    field_P, start_P = np.divmod(key_P, num_starts)
    count_F = np.bincount(field_P, minlength=len(dataset_F))
    is_compared_P = count_F[field_P] > 1
    field_P, start_P, best_P = field_P[is_compared_P], start_P[is_compared_P], best_P[is_compared_P]
    standing_P = mean_ranks(field_P, best_P) / (count_F[field_P] - 1)
    pair_Q, which_P = np.unique(dataset_F[field_P] * num_starts + start_P, return_inverse=True)
    mean_Q = np.bincount(which_P, standing_P, len(pair_Q)) / np.bincount(which_P, minlength=len(pair_Q))
    dataset_Q, start_Q = np.divmod(pair_Q, num_starts)
    return start_Q.astype(np.int32), dataset_Q.astype(np.int32), mean_Q


def mean_ranks(groups_P: np.ndarray, values_P: np.ndarray) -> np.ndarray:
    """Return each value's rank within its group, from 0; equal values share their mean rank."""
    import numpy as np

    if not len(values_P):
        return np.zeros(0)
    order = np.lexsort((values_P, groups_P))
    group_O, value_O = groups_P[order], values_P[order]
    is_new_group_O = np.append(True, group_O[1:] != group_O[:-1])
    is_new_value_O = is_new_group_O | np.append(True, value_O[1:] != value_O[:-1])
    position_O = np.arange(len(order))
    first_of_group_O = np.maximum.accumulate(np.where(is_new_group_O, position_O, 0))
    starts = position_O[is_new_value_O]
    ends = np.append(starts[1:], len(order)) - 1
    middle_O = ((starts + ends) / 2)[np.cumsum(is_new_value_O) - 1]
    ranks_P = np.empty(len(order))
    ranks_P[order] = middle_O - first_of_group_O
    return ranks_P


def _digests_of(table: RecordTable) -> list[str]:
    return _split_ids(table.digests_R32.tobytes().hex())


def _split_ids(text: str) -> list[str]:
    return [text[start : start + 64] for start in range(0, len(text), 64)]


def _entries_of(table: RecordTable) -> list[_Entry]:
    architectures, roots = table.architectures_T.tolist(), table.roots_T.tolist()
    numbers = zip(table.starts_R.tolist(), table.fields_R.tolist(), table.values_R.tolist(), strict=True)
    return [
        _Entry(
            table.starts[start],
            table.architectures[architectures[start]],
            table.roots[roots[start]],
            table.fields[field],
            value,
        )
        for start, field, value in numbers
    ]


_ARRAYS = (
    "digests_R32", "starts_R", "fields_R", "values_R", "architectures_T", "roots_T", "starts_P", "datasets_P",
    "standing_P",
)  # fmt: skip


def _dump(table: RecordTable, mtime_ns: int) -> bytes:
    """Return the cache's bytes: arrays without pickles, the names in one of them, and a CRC-32 of all.

    The parts of a zip have their own, but of a part that says a smaller shape than it has nobody reads to the end.
    """
    import numpy as np

    names = {key: getattr(table, key) for key in ("architectures", "fields", "datasets")}
    names |= {"version": CACHE_VERSION, "mtime_ns": mtime_ns, "starts": "".join(table.starts)}
    names |= {"roots": "".join(table.roots)}
    written = io.BytesIO()
    arrays = {key: getattr(table, key) for key in _ARRAYS}
    np.savez(written, names=np.frombuffer(json.dumps(names).encode(), dtype=np.uint8), **arrays)
    content = written.getvalue()
    return content + _crc_of(content)


def _crc_of(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(CRC_BYTES, "big")


def _load(place: Place) -> tuple[RecordTable | None, int]:
    """Return the cached table, and the time of the folder that it was settled at; none where it can't be used."""
    import numpy as np

    try:
        raw = place.read(CACHE_KEY, MAX_CACHE_BYTES)
        if _crc_of(raw[:-CRC_BYTES]) != raw[-CRC_BYTES:]:
            raise ValueError("damaged, or of an older version")
        with np.load(io.BytesIO(raw[:-CRC_BYTES]), allow_pickle=False) as arrays:
            names = json.loads(arrays["names"].tobytes())
            if names["version"] != CACHE_VERSION:
                return None, 0
            starts, roots = (_split_ids(names[key]) for key in ("starts", "roots"))
            fields = [(digest, num_train, epochs) for digest, num_train, epochs in names["fields"]]
            table = RecordTable(
                **{key: arrays[key] for key in _ARRAYS},
                starts=starts,
                architectures=names["architectures"],
                roots=roots,
                fields=fields,
                datasets=names["datasets"],
            )
            return table, names["mtime_ns"]
    except FileNotFoundError:
        return None, 0
    except (StoreError, StoreDamaged, StoreUnreadable) as error:
        fault: Exception = error
    except (OSError, ValueError, KeyError, TypeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        fault = error
    logger.info("%s can't be used (%s): rebuilding it", place.where(CACHE_KEY), fault)
    return None, 0
