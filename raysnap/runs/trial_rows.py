"""A trial as the rows of its run tell it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from raysnap.runs.json_fields import mapping, number, numbers, sequence, text, whole

NO_FAILURE = ("done", "stopped")  # a scheduler that stops a trial did what it is for


@dataclass(frozen=True)
class Trial:
    """One row of a `generate`, `synthesize` or `sweep` run; what the row does not say is `None` or empty.

    Attributes:
        epochs: the numbers of each epoch, in order.
        point: what a sweep sampled for it, by dotted key.
        objective: what the sweep compares trials by, at the kept epoch.
        stopped: why it ended before its last epoch.
        predictions: where its test predictions lie, relative to the run directory.
    """

    name: str
    role: str
    status: str
    error: str | None
    architecture: str
    dataset: str | None
    retrain_index: int | None
    num_blocks: int | None
    num_classes: int | None
    snapshot: str | None
    val_accuracy: float | None
    test_accuracy: float | None
    epochs: tuple[dict[str, float], ...]
    train_s: float | None
    total_s: float | None
    wall_s: float | None
    overhead_s: float | None
    num_trained_parameters: float | None
    num_parameters: float | None
    new_bytes: float | None
    snapshot_bytes: float | None
    base: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    timings_s: dict[str, float] = field(default_factory=dict)
    point: dict[str, Any] = field(default_factory=dict)
    sample: int | None = None
    objective: float | None = None
    stopped: str | None = None
    predictions: str | None = None
    note: str | None = None

    @property
    def is_done(self) -> bool:
        """Whether the trial ran to its end."""
        return self.status == "done"

    @property
    def has_failed(self) -> bool:
        """Whether something went wrong with it."""
        return self.status not in NO_FAILURE

    @property
    def curve(self) -> tuple[tuple[float, float], ...]:
        """(epoch, validation accuracy) in order."""
        return self.curve_of("val_accuracy")

    def curve_of(self, metric: str) -> tuple[tuple[float, float], ...]:
        """(epoch, value) of one metric in order, where it is known."""
        return tuple((one["epoch"], one[metric]) for one in self.epochs if metric in one)


def read_trial(row: dict[str, Any]) -> Trial:
    """A trial from its row, read leniently."""
    metrics, timings_s = mapping(row.get("metrics")), mapping(row.get("timings_s"))
    epochs = [numbers(epoch) for epoch in sequence(row.get("history"))]
    return Trial(
        name=str(row["trial"]),
        role=text(row.get("role")) or "finetune",
        status=text(row.get("status")) or "unknown",
        error=text(row.get("error")),
        architecture=text(row.get("architecture")) or "unknown",
        dataset=text(row.get("dataset")),
        retrain_index=whole(row.get("retrain_index")),
        num_blocks=whole(row.get("num_blocks")),
        num_classes=whole(row.get("num_classes")),
        snapshot=text(row.get("snapshot")),
        val_accuracy=number(metrics.get("val_accuracy")),
        test_accuracy=number(metrics.get("test_accuracy")),
        epochs=tuple(sorted((one for one in epochs if "epoch" in one), key=lambda one: one["epoch"])),
        train_s=number(timings_s.get("train")),
        total_s=number(timings_s.get("total")),
        wall_s=number(row.get("wall_s")),
        overhead_s=number(row.get("overhead_s")),
        num_trained_parameters=number(row.get("num_trained_parameters")),
        num_parameters=number(row.get("num_parameters")),
        new_bytes=number(row.get("new_bytes")),
        snapshot_bytes=number(row.get("snapshot_bytes")),
        base=text(row.get("base")),
        metrics=numbers(metrics),
        timings_s=numbers(timings_s),
        point=mapping(row.get("point")),
        sample=whole(row.get("sample")),
        objective=number(row.get("objective")),
        stopped=text(row.get("stopped")),
        predictions=text(row.get("predictions")),
        note=text(row.get("note")),
    )
