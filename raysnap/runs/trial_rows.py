"""One trial's row in `results.jsonl`: the one schema that jobs write and that reports, tables and `--resume` read.

Rows are read leniently: a field that is missing or of another kind is unknown, never an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Self, TypeVar

from raysnap.config.choices import Role, Status
from raysnap.runs.json_fields import mapping, number, numbers, sequence, text, whole

ENDED_WELL = (Status.DONE, Status.STOPPED)  # a scheduler that stops a trial did what it is for

_ONLY_IF_KNOWN = frozenset(
    (
        "gpu_share",
        "gpu_peak_bytes",
        "gpu_bytes",
        "gpu_forecast_bytes",
        "num_parameters",
        "num_trained_parameters",
        "new_blocks",
        "new_bytes",
        "snapshot_bytes",
        "snapshot_name",
        "num_classes",
        "node",
    )
)
_ONLY_OF_SWEEPS = frozenset(("objective", "predictions"))
_SYNTHETIC_KEYS = (
    "trial", "role", "status", "error", "architecture", "dataset", "retrain_index", "num_blocks", "snapshot", "base",
    "metrics", "new_bytes", "snapshot_bytes", "finished",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One row of a `generate`, `sweep` or `synthesize` run; fields are named and ordered as the row's keys.

    Attributes:
        trial: its id.
        role: a `Role`; other text only in a row that raysnap did not write.
        point: what a sweep sampled for it, by dotted key.
        sample: which of the sweep's `num_samples` it belongs to, from 1; None outside sweeps.
        snapshot_name: of its snapshot in the store, where that is not the trial's id; that was another's name then.
        metrics: of the kept epoch: `val_accuracy`, `test_accuracy`, `best_epoch`, ….
        history: an entry per epoch.
        timings_s: seconds of training by phase, and their `total`.
        wall_s: from its start in Tune until it was stored, of which `overhead_s` was not training.
        node: the address of the node that it ran on; with several workers that of the first.
        device: what it computed on there: a GPU's name, or `cpu`.
        gpu_share: the share of a GPU that it had.
        gpu_peak_bytes: the most of its GPU's memory that it took, of `gpu_bytes` in all.
        gpu_forecast_bytes: what had been forecast of that.
        stopped: why it ended before its last epoch: `scheduler`, `time_budget`, `time_limit` or `patience`.
        inherited: the trials and epochs whose weights it copied, under `pbt`.
        status: a `Status`; other text only in a row that raysnap did not write.
        new_bytes: how much its snapshot added to the store.
        objective: what the sweep compares trials by, at the kept epoch.
        predictions: where its test predictions are, relative to the run directory.
        is_compared: whether a sweep wrote the row, with its objective and predictions (`null` where unknown).
    """

    trial: str
    role: Role | str
    architecture: str = "unknown"
    dataset: str | None = None
    retrain_index: int | None = None
    num_blocks: int | None = None
    image_size: int | None = None
    point: dict[str, Any] = field(default_factory=dict)
    sample: int | None = None
    seed: int | None = None
    train: dict[str, Any] = field(default_factory=dict)
    batch_size: int | None = None
    snapshot: str | None = None
    snapshot_name: str | None = None
    base: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    history: Sequence[dict[str, Any]] = ()
    timings_s: dict[str, float] = field(default_factory=dict)
    wall_s: float | None = None
    overhead_s: float | None = None
    node: str | None = None
    device: str | None = None
    gpu_share: float | None = None
    gpu_peak_bytes: int | None = None
    gpu_bytes: int | None = None
    gpu_forecast_bytes: int | None = None
    precision: str | None = None
    note: str | None = None
    stopped: str | None = None
    inherited: Sequence[Any] = ()
    finished: str | None = None
    status: Status | str
    error: str | None = None
    num_parameters: float | None = None
    num_trained_parameters: float | None = None
    new_blocks: int | None = None
    new_bytes: float | None = None
    snapshot_bytes: float | None = None
    objective: float | None = None
    predictions: str | None = None
    num_classes: int | None = None
    is_compared: bool = False

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Self:
        """Return the trial of a row, which has at least the key `trial`."""
        return cls(
            trial=str(row["trial"]),
            role=_choice(Role, row.get("role")) or Role.FINETUNE,
            architecture=text(row.get("architecture")) or "unknown",
            dataset=text(row.get("dataset")),
            retrain_index=whole(row.get("retrain_index")),
            num_blocks=whole(row.get("num_blocks")),
            image_size=whole(row.get("image_size")),
            point=mapping(row.get("point")),
            sample=whole(row.get("sample")),
            seed=whole(row.get("seed")),
            train=mapping(row.get("train")),
            batch_size=whole(row.get("batch_size")),
            snapshot=text(row.get("snapshot")),
            snapshot_name=text(row.get("snapshot_name")),
            base=text(row.get("base")),
            metrics=_figures(row.get("metrics")),
            history=tuple(mapping(epoch) for epoch in sequence(row.get("history"))),
            timings_s=_figures(row.get("timings_s")),
            wall_s=number(row.get("wall_s")),
            overhead_s=number(row.get("overhead_s")),
            node=text(row.get("node")),
            device=text(row.get("device")),
            gpu_share=number(row.get("gpu_share")),
            gpu_peak_bytes=whole(row.get("gpu_peak_bytes")),
            gpu_bytes=whole(row.get("gpu_bytes")),
            gpu_forecast_bytes=whole(row.get("gpu_forecast_bytes")),
            precision=text(row.get("precision")),
            note=text(row.get("note")),
            stopped=text(row.get("stopped")),
            inherited=tuple(sequence(row.get("inherited"))),
            finished=text(row.get("finished")),
            status=_choice(Status, row.get("status")) or Status.UNKNOWN,
            error=text(row.get("error")),
            num_parameters=_figure(row.get("num_parameters")),
            num_trained_parameters=_figure(row.get("num_trained_parameters")),
            new_blocks=whole(row.get("new_blocks")),
            new_bytes=_figure(row.get("new_bytes")),
            snapshot_bytes=_figure(row.get("snapshot_bytes")),
            objective=_figure(row.get("objective")),
            predictions=text(row.get("predictions")),
            num_classes=whole(row.get("num_classes")),
            is_compared="objective" in row,
        )

    def as_json(self) -> dict[str, Any]:
        """Return the row as it is written, its keys in their order."""
        values = {key: getattr(self, key) for key in _KEYS}
        if self.role == Role.SYNTHETIC:
            return {key: values[key] for key in _SYNTHETIC_KEYS}
        if self.sample is None and not self.point:
            values["point"] = None
        absent = {key for key in _ONLY_IF_KNOWN if values[key] is None}
        absent |= frozenset() if self.is_compared else _ONLY_OF_SWEEPS
        return {key: value for key, value in values.items() if key not in absent}

    @property
    def name(self) -> str:
        """Its id, by which people know it."""
        return self.trial

    @property
    def is_done(self) -> bool:
        """Whether the trial ran to its end."""
        return self.status == Status.DONE

    @property
    def has_failed(self) -> bool:
        """Whether something went wrong with it."""
        return self.status not in ENDED_WELL

    @property
    def is_final(self) -> bool:
        """Whether a resumed job leaves the trial as it is: one that ended well, unless only its time ran out."""
        return not self.has_failed and self.stopped != "time_budget"

    @property
    def val_accuracy(self) -> float | None:
        """Accuracy on val at the kept epoch."""
        return self.metrics.get("val_accuracy")

    @property
    def test_accuracy(self) -> float | None:
        """Accuracy on test of the kept epoch's weights."""
        return self.metrics.get("test_accuracy")

    @property
    def train_s(self) -> float | None:
        """Seconds in optimizer steps."""
        return self.timings_s.get("train")

    @property
    def total_s(self) -> float | None:
        """Seconds from reading the data to the last checkpoint."""
        return self.timings_s.get("total")

    @cached_property
    def epochs(self) -> tuple[dict[str, float], ...]:
        """The numbers of each epoch, in order."""
        known = [numbers(epoch) for epoch in self.history]
        return tuple(sorted((epoch for epoch in known if "epoch" in epoch), key=lambda epoch: epoch["epoch"]))

    @property
    def curve(self) -> tuple[tuple[float, float], ...]:
        """(epoch, validation accuracy) in order."""
        return self.curve_of("val_accuracy")

    def curve_of(self, metric: str) -> tuple[tuple[float, float], ...]:
        """Return (epoch, value) of one metric in order, where it is known."""
        return tuple((epoch["epoch"], epoch[metric]) for epoch in self.epochs if metric in epoch)


_KEYS = tuple(key for key in TrialRow.__dataclass_fields__ if key != "is_compared")


def latest_trial_rows(rows: Iterable[Mapping[str, Any]]) -> list[TrialRow]:
    """Return the last row of each trial, which a retry replaces; rows of something else are left out."""
    trials = (TrialRow.read(row) for row in rows if row.get("trial") is not None)
    return list({trial.trial: trial for trial in trials}.values())


_Choice = TypeVar("_Choice", bound=StrEnum)


def _choice(choices: type[_Choice], value: Any) -> _Choice | str | None:
    """Return the choice of that name; other text as it is, and None of no text."""
    known = text(value)
    if known is None or known not in choices.__members__.values():
        return known
    return choices(known)


def _figure(value: Any) -> float | None:
    """Return a finite number as it was written, whole or not; else None."""
    return value if number(value) is not None else None


def _figures(value: Any) -> dict[str, float]:
    """Return the finite numbers of a JSON object by key, as they were written."""
    return {key: figure for key, figure in mapping(value).items() if number(figure) is not None}


def merit_order(
    objective: float, metrics: Mapping[str, float], trial: str, *, is_max: bool
) -> tuple[float, float, str]:
    """Return what the better of two trials has the least of: objectives first, then validation losses, then ids.

    On few validation items, accuracies are often equal.
    """
    return (-objective if is_max else objective), metrics.get("val_loss", math.inf), trial
