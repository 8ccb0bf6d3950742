"""One timed search's row in `results.jsonl`: the one schema that a benchmark writes and that reports read.

Rows are read leniently: a field that is missing or of another kind is unknown, never an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from raysnap.config.choices import Status
from raysnap.runs.json_fields import mapping, number, numbers, sequence, text, whole

PHASES = ("start_workers", "plan", "load_blocks", "decode", "inference", "proxy")

# The axes that tell a question from others of the same dataset and proxy, and how people name them.
AXES = {
    "group": "",
    "store": "",
    "where": "where",
    "num_train": "train items",
    "num_test": "test items",
    "image_size": "px",
    "budget_bytes": "activations",
    "cache": "cache",
    "io_limit_mib_per_s": "MiB/s",
    "tolerance": "tolerance",
    "detail": "",
}


@dataclass(frozen=True)
class RankingRow:
    """One line of a search's ranking, as its row has it.

    Attributes:
        low, high: the score's 95 % interval, by the luck of the `num_scored` items that it rests on.
        standing: the place among starts that the store's records let expect.
        dataset, retrain_index: what it was trained on, and how many of its blocks were.
    """

    rank: int
    snapshot: str
    name: str
    score: float | None
    num_train: int | None
    num_test: int | None
    is_tied: bool
    low: float | None = None
    high: float | None = None
    num_scored: int | None = None
    standing: float | None = None
    dataset: str | None = None
    retrain_index: int | None = None
    architecture: str | None = None

    @classmethod
    def read(cls, row: Mapping[str, Any], position: int) -> RankingRow:
        """Return a line of a ranking, at this position from 1."""
        snapshot = text(row.get("snapshot")) or f"candidate {position}"
        return cls(
            rank=whole(row.get("rank")) or position,
            snapshot=snapshot,
            name=text(row.get("name")) or snapshot[:12],
            score=number(row.get("score")),
            num_train=whole(row.get("num_train")),
            num_test=whole(row.get("num_test")),
            is_tied=row.get("tied_with_best") is True,
            low=number(row.get("low")),
            high=number(row.get("high")),
            num_scored=whole(row.get("num_scored")) or None,
            standing=number(row.get("standing")),
            dataset=text(row.get("dataset")),
            retrain_index=whole(row.get("retrain_index")),
            architecture=text(row.get("architecture")),
        )

    @property
    def rung(self) -> tuple[int | None, int | None]:
        """The items that its score rests on; only scores of one rung can be compared."""
        return self.num_train, self.num_test


@dataclass(frozen=True)
class RungRow:
    """One rung of a search: its candidates and items, its work, and the seconds of each phase.

    Attributes:
        expected_loss: what naming its best candidate was expected to lose on new items.
    """

    num_candidates: int | None
    num_train: int | None
    num_test: int | None
    num_kept: int | None
    expected_loss: float | None
    work: dict[str, float]
    phases_s: dict[str, float]

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> RungRow:
        """Return a rung of a search's row."""
        return cls(
            num_candidates=whole(row.get("num_candidates")),
            num_train=whole(row.get("num_train")),
            num_test=whole(row.get("num_test")),
            num_kept=whole(row.get("num_kept")),
            expected_loss=number(row.get("expected_loss")),
            work=numbers({key: row.get(key) for key in ("block_item_passes", "flops", "block_bytes_read")}),
            phases_s=_phases(mapping(row.get("timings_s")) or {"total": row.get("total_s")}),
        )

    @property
    def has_phases(self) -> bool:
        """Whether its time is known by phase, not only in total."""
        return _has_phases(self.phases_s)

    @property
    def total_s(self) -> float:
        """The rung's time in seconds."""
        return math.fsum(self.phases_s.values())


@dataclass(frozen=True, kw_only=True)
class SearchRow:
    """One timed search: a row of a `bench` run, or a document of `search --json`.

    Fields are named and ordered as the row's keys; what they add up to are properties.

    Attributes:
        cell: the name of the benchmark's cell; group and what follows up to `seed` are its axes.
        precision: what was asked for; `computed_precision` is what blocks computed in.
        status: a `Status`; other text only in a row that raysnap did not write.
        search: the document that `SearchResult.to_dict` gives; empty where the search failed.
        wall_s: seconds that the call took, opening the store included.
        page_cache: its state before the search, and how many bytes of the files were in it.
        io: bytes read from the disk, and the rate at which blocks were read.
        memory: peaks, in bytes.
        load: which share of the CPUs this and other processes had.
        noise: why its times are doubtful, a clause each.
        block_reads: a row per block read, at the detail `step_details`.
        recording_s: seconds spent on keeping `block_reads`.
        finished: when, in UTC.
        repeat: the number of the run in its cell, from 0.
    """

    cell: str = ""
    group: str | None = None
    store: str | None = None
    dataset: str = "unknown"
    where: str | None = None
    num_train: int | None = None
    num_test: int | None = None
    image_size: int | None = None
    budget_bytes: int | None = None
    proxy: str = "unknown"
    method: str
    cache: str | None = None
    tolerance: float | None = None
    precision: str | None = None
    io_limit_mib_per_s: float | None = None
    detail: str | None = None
    seed: int | None = None
    status: Status | str
    error: str | None = None
    search: dict[str, Any] = field(default_factory=dict)
    wall_s: float | None = None
    num_threads: int | None = None
    device: str | None = None
    machine: str | None = None
    page_cache: dict[str, Any] = field(default_factory=dict)
    io: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    load: dict[str, Any] = field(default_factory=dict)
    is_noisy: bool = False
    noise: Sequence[str] = ()
    block_reads: Sequence[dict[str, Any]] = ()
    recording_s: float | None = None
    finished: str | None = None
    repeat: int = 0

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> SearchRow:
        """Return the timed search of a row, which has at least the key `method`."""
        search = mapping(row.get("search"))
        noise = [str(reason) for reason in sequence(row.get("noise"))] or ["the run flagged itself"]
        is_noisy = row.get("is_noisy") is True
        return cls(
            cell=text(row.get("cell")) or "",
            group=text(row.get("group")),
            store=text(row.get("store")),
            dataset=text(row.get("dataset")) or text(search.get("dataset")) or "unknown",
            where=text(row.get("where")),
            num_train=whole(row.get("num_train")),
            num_test=whole(row.get("num_test")),
            image_size=whole(row.get("image_size")),
            budget_bytes=whole(row.get("budget_bytes")),
            proxy=text(row.get("proxy")) or text(search.get("proxy")) or "unknown",
            method=str(row["method"]),
            cache=text(row.get("cache")),
            tolerance=number(row.get("tolerance")),
            precision=text(row.get("precision")),
            io_limit_mib_per_s=number(row.get("io_limit_mib_per_s")),
            detail=text(row.get("detail")),
            seed=whole(row.get("seed")),
            status=text(row.get("status")) or Status.UNKNOWN,
            error=text(row.get("error")),
            search=search,
            wall_s=number(row.get("wall_s")),
            num_threads=whole(row.get("num_threads")),
            device=text(row.get("device")),
            machine=text(row.get("machine")),
            page_cache=mapping(row.get("page_cache")),
            io=mapping(row.get("io")),
            memory=mapping(row.get("memory")),
            load=mapping(row.get("load")),
            is_noisy=is_noisy,
            noise=noise if is_noisy else [],
            block_reads=[mapping(read) for read in sequence(row.get("block_reads"))],
            recording_s=number(row.get("recording_s")),
            finished=text(row.get("finished")),
            repeat=whole(row.get("repeat")) or 0,
        )

    def as_json(self) -> dict[str, Any]:
        """Return the row as it is written, its keys in their order; a failed run has no measurements."""
        absent = _MEASUREMENTS if self.status != Status.DONE else ()
        values = {key.name: getattr(self, key.name) for key in fields(self) if key.name not in absent}
        return values | {"search": self.search or None}

    @property
    def is_done(self) -> bool:
        """Whether the search finished and was timed."""
        return self.status == Status.DONE and self.total_s is not None

    @property
    def setting(self) -> tuple[tuple[str, Any], ...]:
        """The axes that are set; a run that was to be cold and was not is no cold run."""
        values = {axis: value for axis in AXES if (value := getattr(self, axis)) is not None}
        found = text(self.page_cache.get("state"))
        if values.get("cache") == "cold" and found != "cold":
            values["cache"] = f"{found or 'unknown'}, not cold as asked"
        return tuple(values.items())

    @property
    def num_candidates(self) -> int:
        """How many snapshots were candidates."""
        return whole(self.search.get("num_candidates")) or 0

    @cached_property
    def ranking(self) -> tuple[RankingRow, ...]:
        """The ranked snapshots, best first."""
        lines = enumerate(sequence(self.search.get("ranking")), start=1)
        return tuple(RankingRow.read(mapping(line), position) for position, line in lines)

    @property
    def scores(self) -> dict[str, float]:
        """The score of each snapshot that has one."""
        return {line.snapshot: line.score for line in self.ranking if line.score is not None}

    @cached_property
    def rungs(self) -> tuple[RungRow, ...]:
        """What each rung did."""
        return tuple(RungRow.read(mapping(rung)) for rung in sequence(self.search.get("rungs")))

    @property
    def static_baseline(self) -> RankingRow | None:
        """The rank of the no-search baseline."""
        found = mapping(self.search.get("static_baseline"))
        return RankingRow.read(found, 1) if found else None

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """The candidates that could not be scored, each with the error."""
        entries = map(mapping, sequence(self.search.get("skipped")))
        return tuple((str(entry.get("snapshot")), str(entry.get("error"))) for entry in entries)

    @property
    def total_s(self) -> float | None:
        """Seconds that the search took."""
        return number(mapping(self.search.get("timings_s")).get("total"))

    @property
    def phases_s(self) -> dict[str, float]:
        """Seconds of each phase, and under `rest` what no phase explains."""
        return _phases(mapping(self.search.get("timings_s")))

    @property
    def has_phases(self) -> bool:
        """Whether the time is known by phase, not only in total."""
        return _has_phases(self.phases_s)

    @property
    def bound_s(self) -> float | None:
        """Seconds that the same work takes at the best speeds seen."""
        return number(self.search.get("bound_s"))

    @property
    def computed_precision(self) -> str | None:
        """What blocks computed in."""
        return text(self.search.get("precision"))

    @property
    def work(self) -> dict[str, float]:
        """Counters of the work: passes, FLOPs, bytes read, images decoded."""
        return numbers(self.search.get("work"))

    @property
    def peak_activation_bytes(self) -> float | None:
        """The most bytes of activations held at once."""
        return number(self.search.get("peak_activation_bytes"))

    @property
    def peak_memory_bytes(self) -> float | None:
        """The most bytes held on the GPU, or by the process where there was none."""
        return number(self.memory.get("peak_cuda_bytes")) or number(self.memory.get("peak_rss_bytes"))

    @property
    def read_bytes(self) -> float | None:
        """Bytes read from the disk."""
        return number(self.io.get("read_bytes"))


_MEASUREMENTS = (
    "wall_s", "num_threads", "device", "machine", "page_cache", "io", "memory", "load", "is_noisy", "noise",
    "block_reads", "recording_s",
)  # fmt: skip


def _phases(timings_s: Mapping[str, Any]) -> dict[str, float]:
    phases_s = {phase: max(0.0, number(timings_s.get(phase)) or 0.0) for phase in PHASES}
    return phases_s | {"rest": max(0.0, (number(timings_s.get("total")) or 0.0) - math.fsum(phases_s.values()))}


def _has_phases(phases_s: Mapping[str, float]) -> bool:
    return any(seconds > 0 for phase, seconds in phases_s.items() if phase != "rest")
