"""The rebuildable index: what listing and filtering need of every manifest and ref, in one small SQLite file.

It is only a cache: read whole, checked, compared with a listing of what it mirrors, updated in memory and written whole
like any other document of the store. So it needs no SQLite lock, and a damaged one is simply rebuilt; and a listing of
10,000 snapshots in a bucket takes a dozen requests.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from raysnap.errors import StoreDamaged, StoreError, StoreUnreadable
from raysnap.store.backends.place import REFS, SNAPSHOTS, Place, is_manifest_name
from raysnap.store.catalog import read_manifest, read_ref
from raysnap.store.manifest import is_ref_name
from raysnap.store.where import compile_where

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

INDEX_KEY = "index.sqlite"
MAX_INDEX_BYTES = 4 * 2**30
SETTLED_NS = 2 * 10**9

_SCHEMA = """
CREATE TABLE snapshots (id TEXT PRIMARY KEY, stamp TEXT, architecture TEXT, dataset TEXT, retrain_index INTEGER,
  accuracy REAL, num_classes INTEGER, num_blocks INTEGER, num_bytes INTEGER, image_size INTEGER, body TEXT, base TEXT,
  trial TEXT, created TEXT, metrics TEXT) WITHOUT ROWID;
CREATE TABLE refs (name TEXT PRIMARY KEY, stamp TEXT, id TEXT) WITHOUT ROWID;
CREATE INDEX refs_by_id ON refs (id);
CREATE TABLE damaged (file TEXT PRIMARY KEY, reason TEXT) WITHOUT ROWID;
CREATE TABLE folders (name TEXT PRIMARY KEY, mtime_ns INTEGER, is_settled INTEGER) WITHOUT ROWID;
"""
_SCHEMA_ID = zlib.crc32(_SCHEMA.encode()) & 0x7FFFFFFF
# Offsets in SQLite's file header: the user version holds our checksum, the application id our schema.
_CHECKSUM, _APPLICATION = slice(60, 64), slice(68, 72)
_SUMMARY = (
    "id, architecture, dataset, retrain_index, accuracy, num_classes, num_blocks, num_bytes, image_size, body, base, "
    "trial, created"
)
_METRICS = "SELECT id, metrics FROM snapshots"


SqlRow: TypeAlias = tuple[str | int | float | None, ...]


class SnapshotSummary(NamedTuple):
    """What a listing shows of one snapshot; a field is as in its `Manifest`, `names` are its refs in order.

    `image_size` is that of its preprocessing.
    """

    id: str
    architecture: str
    dataset: str | None
    retrain_index: int | None
    accuracy: float | None
    num_classes: int
    num_blocks: int
    num_bytes: int
    image_size: int
    body: str
    base: str | None
    trial: str | None
    created: str
    names: tuple[str, ...]


class Lineage(NamedTuple):
    """Where a snapshot comes from: its base, if any; `name` is its first ref, `is_match` what a `where` says of it."""

    id: str
    architecture: str
    base: str | None
    name: str | None
    is_match: bool


def list_summaries(place: Place, where: str | None = None) -> list[SnapshotSummary]:
    """Return the snapshots that match `where`, oldest first.

    Raises:
        UsageError: `where` is not an expression over snapshots.
    """
    with _connect(place) as connection:
        names: dict[str, list[str]] = {}
        for name, snapshot in connection.execute("SELECT name, id FROM refs ORDER BY name"):
            names.setdefault(snapshot, []).append(name)
        rows = _select(connection, _SUMMARY, where)
    return [SnapshotSummary._make((*row, tuple(names.get(row[0], ())))) for row in rows]


def list_lineages(place: Place, where: str | None = None) -> list[Lineage]:
    """Return where each snapshot comes from, in the order of their ids, and whether it matches `where`.

    Raises:
        UsageError: `where` is not an expression over snapshots.
    """
    with _connect(place) as connection:
        matching = None if where is None else {snapshot for (snapshot,) in _select(connection, "id", where)}
        first_names = dict(connection.execute("SELECT id, min(name) FROM refs GROUP BY id"))
        rows = connection.execute("SELECT id, architecture, base FROM snapshots ORDER BY id").fetchall()
    return [
        Lineage(snapshot, architecture, base, first_names.get(snapshot), matching is None or snapshot in matching)
        for snapshot, architecture, base in rows
    ]


def _select(connection: sqlite3.Connection, columns: str, where: str | None) -> list[Any]:
    condition, parameters = compile_where(where) if where is not None else ("1", [])
    try:
        return connection.execute(
            f"SELECT {columns} FROM snapshots WHERE {condition} ORDER BY created, id", parameters
        ).fetchall()
    except sqlite3.OperationalError as error:
        raise StoreError(f"where {where!r}: SQLite {sqlite3.sqlite_version} can't run it: {error}") from None


def list_metrics(place: Place) -> dict[str, dict[str, float]]:
    """Return the metrics of every snapshot by its id."""
    with _connect(place) as connection:
        return {snapshot: json.loads(metrics) for snapshot, metrics in connection.execute(_METRICS)}


def list_refs(place: Place) -> dict[str, str]:
    """Return the snapshot id of every name, in alphabetical order; damaged refs are logged and left out."""
    with _connect(place) as connection:
        return dict(connection.execute("SELECT name, id FROM refs ORDER BY name"))


def other_names(place: Place, snapshots: Collection[str]) -> dict[str, str]:
    """Return the stamp at which each name refers to a snapshot other than these; where reading is quick, of none."""
    if not place.is_far:
        return {}
    with _connect(place) as connection:
        rows = connection.execute("SELECT name, stamp, id FROM refs").fetchall()
    return {name: stamp for name, stamp, snapshot in rows if snapshot not in snapshots}


@contextmanager
def _connect(place: Place) -> Iterator[sqlite3.Connection]:
    """Open the index, up to date, as a database in memory."""
    with closing(sqlite3.connect(":memory:")) as connection:
        _load(connection, place)
        if _update(connection, place):
            with suppress(StoreError):  # a read-only store can still be listed
                place.write(INDEX_KEY, _serialize(connection))
        for file, reason in connection.execute("SELECT file, reason FROM damaged ORDER BY file"):
            logger.warning("%s is left out of the list: %s", file, reason)
        yield connection


def _load(connection: sqlite3.Connection, place: Place) -> None:
    """Fill the connection with the file's tables, or with empty ones if the file is missing or damaged."""
    where = place.where(INDEX_KEY)
    try:
        content = bytearray(place.read(INDEX_KEY, MAX_INDEX_BYTES))
        stored = bytes(content[_CHECKSUM])
        content[_CHECKSUM] = bytes(4)
        is_ours = int.from_bytes(content[_APPLICATION], "big") == _SCHEMA_ID
        if is_ours and len(content) > 100 and zlib.crc32(content).to_bytes(4, "big") == stored:
            connection.deserialize(bytes(content))
            return
        logger.info("%s is damaged or of another version: rebuilding it", where)
    except FileNotFoundError:
        pass
    except (StoreDamaged, StoreError, StoreUnreadable, sqlite3.Error) as error:
        logger.info("%s can't be read (%s): rebuilding it", where, error)
    connection.executescript(_SCHEMA + f"PRAGMA application_id = {_SCHEMA_ID};")


def _serialize(connection: sqlite3.Connection) -> bytes:
    """Return the database's bytes, with their CRC-32 in the header field that SQLite reserves for its users."""
    connection.execute("PRAGMA user_version = 0")
    connection.commit()
    content = bytearray(connection.serialize())
    content[_CHECKSUM] = zlib.crc32(content).to_bytes(4, "big")
    return bytes(content)


def _update(connection: sqlite3.Connection, place: Place) -> bool:
    """Bring the tables up to date, and return whether the file should be written again."""
    known = {name: rest for name, *rest in connection.execute("SELECT name, mtime_ns, is_settled FROM folders")}
    has_damage = connection.execute("SELECT 1 FROM damaged").fetchone() is not None
    changed = False
    for table in (SNAPSHOTS, REFS):
        changed_ns = place.last_change(table)
        if changed_ns is not None and known.get(table) == [changed_ns, 1] and not has_damage:
            continue
        # A file may appear in the same tick of the clock as the listing; only an older folder time proves no change.
        is_settled = int(changed_ns is not None and place.now_ns() - changed_ns > SETTLED_NS)
        num_changes = _update_table(connection, table, place)
        if num_changes or known.get(table) != [changed_ns, is_settled]:
            connection.execute("INSERT OR REPLACE INTO folders VALUES (?, ?, ?)", (table, changed_ns, is_settled))
            changed = True
    connection.commit()
    return changed


def _update_table(connection: sqlite3.Connection, table: str, place: Place) -> int:
    """Make the table's rows match the folder's files, and return how many files were new, changed or gone."""
    key = "id" if table == SNAPSHOTS else "name"
    rows = dict(connection.execute(f"SELECT {key}, stamp FROM {table}"))
    prefix = f"{table}/"
    # Damaged files are read again each time: the disk may have failed only for a moment.
    known_damage = connection.execute("SELECT * FROM damaged WHERE file GLOB ?", (f"{prefix}*",)).fetchall()
    connection.execute("DELETE FROM damaged WHERE file GLOB ?", (f"{prefix}*",))
    found, damage = _stamps(place, table), []
    row_of = _snapshot_row if table == SNAPSHOTS else _ref_row
    stale = [name for name, stamp in rows.items() if found.get(name) != stamp]
    fresh = [name for name, stamp in found.items() if rows.get(name) != stamp]
    connection.executemany(f"DELETE FROM {table} WHERE {key} = ?", [(name,) for name in stale])

    def read_row(name: str) -> SqlRow | str | None:
        """Return the name's row, what is wrong with its file, or None where it is gone."""
        try:
            return row_of(place, name, found[name])
        except FileNotFoundError:
            return None
        except (StoreDamaged, StoreUnreadable) as error:
            return str(error)

    for name, row in zip(fresh, place.map(read_row, fresh), strict=True):
        if isinstance(row, str):
            damage.append((prefix + name, row))
        elif row is not None:
            connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
    connection.executemany("INSERT INTO damaged VALUES (?, ?)", damage)
    return len(stale) + len(fresh) - len(damage) + (sorted(damage) != known_damage)


def _stamps(place: Place, folder: str) -> dict[str, str]:
    """Return, for each snapshot or ref in the folder, a stamp that changes when its file is replaced."""
    listed = place.entries(folder)
    if folder == SNAPSHOTS:
        return {one.name.removesuffix(".json"): one.stamp for one in listed if is_manifest_name(one.name)}
    return {one.name: one.stamp for one in listed if is_ref_name(one.name)}


def _snapshot_row(place: Place, snapshot: str, stamp: str) -> SqlRow:
    manifest = read_manifest(place, snapshot)
    return (
        manifest.id,
        stamp,
        manifest.architecture,
        manifest.dataset.name if manifest.dataset else None,
        manifest.retrain_index,
        manifest.accuracy,
        manifest.num_classes,
        len(manifest.blocks),
        manifest.num_bytes,
        manifest.preprocessing.image_size,
        manifest.body,
        manifest.base,
        manifest.trial,
        manifest.created,
        json.dumps(manifest.metrics),
    )


def _ref_row(place: Place, name: str, stamp: str) -> SqlRow:
    return (name, stamp, read_ref(place, name))


def to_pandas(summaries: Sequence[SnapshotSummary], metrics: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Return a row per snapshot; `metrics` are those of each snapshot's id, a column `metrics.NAME` each."""
    import pandas as pd  # half a second that listing a store does without

    columns = ["id", "name", *(field for field in SnapshotSummary._fields if field not in ("id", "names"))]
    rows = [{"name": next(iter(summary.names), None)} | summary._asdict() for summary in summaries]
    table = pd.DataFrame(rows, columns=columns).astype({"retrain_index": "Int64", "accuracy": "float64"})
    found = [metrics.get(summary.id, {}) for summary in summaries]
    for name in sorted({name for of_one in found for name in of_one}):
        table[f"metrics.{name}"] = pd.Series([of_one.get(name) for of_one in found], dtype="float64")
    return table
