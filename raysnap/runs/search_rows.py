"""A timed search as its row tells it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from raysnap.runs.json_fields import mapping, number, numbers, sequence, text, whole

PHASES = ("start_workers", "plan", "load_blocks", "decode", "inference", "proxy")


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
    "confidence": "confidence",
    "detail": "",
}


@dataclass(frozen=True)
class RankedSnapshot:
    """One line of a search's ranking."""

    rank: int
    snapshot: str
    name: str
    score: float | None
    num_train: int | None
    num_test: int | None
    is_tied: bool


@dataclass(frozen=True)
class Rung:
    """One rung of a search: who was tried on how many items, who stayed, its work, and the seconds of each phase.

    `num_tied` of those that stayed did so only because they can't be told from the last of the others.
    """

    num_candidates: int | None
    num_train: int | None
    num_test: int | None
    num_kept: int | None
    num_tied: int | None
    work: dict[str, float]
    phases_s: dict[str, float]

    @property
    def has_phases(self) -> bool:
        """Whether its time is known by phase and not in total only."""
        return any(value > 0 for phase, value in self.phases_s.items() if phase != "rest")

    @property
    def total_s(self) -> float:
        """The rung's time."""
        return math.fsum(self.phases_s.values())


@dataclass(frozen=True)
class Search:
    """One timed search: one row of a `bench` run, or one document of `search --json`."""

    cell: str
    repeat: int
    status: str
    error: str | None
    method: str
    proxy: str
    dataset: str
    setting: tuple[tuple[str, Any], ...]
    num_candidates: int
    ranking: tuple[RankedSnapshot, ...]
    phases_s: dict[str, float]
    total_s: float | None
    bound_s: float | None
    rungs: tuple[Rung, ...]
    static_baseline: RankedSnapshot | None
    precision: str | None
    work: dict[str, float]
    peak_activation_bytes: float | None
    peak_memory_bytes: float | None
    read_bytes: float | None
    noise: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def is_done(self) -> bool:
        """Whether the search finished and was timed."""
        return self.status == "done" and self.total_s is not None

    @property
    def has_phases(self) -> bool:
        """Whether the time is known by phase and not in total only."""
        return any(value > 0 for phase, value in self.phases_s.items() if phase != "rest")

    @property
    def scores(self) -> dict[str, float]:
        """The score of each snapshot that got one."""
        return {one.snapshot: one.score for one in self.ranking if one.score is not None}


def search_of(row: dict[str, Any]) -> Search:
    """One row of timed searches."""
    search, page_cache, io = mapping(row.get("search")), mapping(row.get("page_cache")), mapping(row.get("io"))
    timings_s = mapping(search.get("timings_s"))
    total_s = number(timings_s.get("total"))
    dataset = text(row.get("dataset")) or text(search.get("dataset")) or "unknown"
    memory = mapping(row.get("memory"))
    noise = tuple(str(reason) for reason in sequence(row.get("noise"))) or ("the run flagged itself",)
    return Search(
        cell=text(row.get("cell")) or "",
        repeat=whole(row.get("repeat")) or 0,
        status=text(row.get("status")) or "unknown",
        error=text(row.get("error")),
        method=str(row["method"]),
        proxy=text(row.get("proxy")) or text(search.get("proxy")) or "unknown",
        dataset=dataset,
        setting=_setting(row, text(page_cache.get("state"))),
        num_candidates=whole(search.get("num_candidates")) or 0,
        ranking=tuple(_ranked(mapping(one), rank) for rank, one in enumerate(sequence(search.get("ranking")), start=1)),
        phases_s=_phases(timings_s),
        total_s=total_s,
        bound_s=number(search.get("bound_s")),
        rungs=tuple(_rung(mapping(one)) for one in sequence(search.get("rungs"))),
        static_baseline=_ranked(mapping(search["static_baseline"]), 1) if search.get("static_baseline") else None,
        precision=text(search.get("precision")),
        work=numbers(search.get("work")),
        peak_activation_bytes=number(search.get("peak_activation_bytes")),
        peak_memory_bytes=number(memory.get("peak_cuda_bytes")) or number(memory.get("peak_rss_bytes")),
        read_bytes=number(io.get("read_bytes")),
        noise=noise if row.get("is_noisy") is True else (),
        skipped=tuple(
            (str(one.get("snapshot")), str(one.get("error"))) for one in map(mapping, sequence(search.get("skipped")))
        ),
    )


def _setting(row: dict[str, Any], cache_found: str | None) -> tuple[tuple[str, Any], ...]:
    """The row's axes; a run that was to be cold and was not is no cold run."""
    values = {axis: row[axis] for axis in AXES if isinstance(row.get(axis), (str, int, float))}
    if values.get("cache") == "cold" and cache_found != "cold":
        values["cache"] = f"{cache_found or 'unknown'}, not cold as asked"
    return tuple(values.items())


def _phases(timings_s: dict[str, Any]) -> dict[str, float]:
    phases_s = {phase: max(0.0, number(timings_s.get(phase)) or 0.0) for phase in PHASES}
    return phases_s | {"rest": max(0.0, (number(timings_s.get("total")) or 0.0) - math.fsum(phases_s.values()))}


def _rung(row: dict[str, Any]) -> Rung:
    counts = [whole(row.get(f"num_{name}")) for name in ("candidates", "train", "test", "kept", "tied")]
    timings_s = mapping(row.get("timings_s")) or {"total": row.get("total_s")}
    work = numbers({key: row.get(key) for key in ("block_item_passes", "flops", "block_bytes_read")})
    return Rung(*counts, work, _phases(timings_s))


def _ranked(row: dict[str, Any], position: int) -> RankedSnapshot:
    snapshot = text(row.get("snapshot")) or f"candidate {position}"
    return RankedSnapshot(
        rank=whole(row.get("rank")) or position,
        snapshot=snapshot,
        name=text(row.get("name")) or snapshot[:12],
        score=number(row.get("score")),
        num_train=whole(row.get("num_train")),
        num_test=whole(row.get("num_test")),
        is_tied=row.get("tied_with_best") is True,
    )
