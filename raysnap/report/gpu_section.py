"""What a report shows of GPUs: how much memory each kind of trial took, and how full the GPUs were."""

from __future__ import annotations

from typing import Any

from raysnap.humanize import plural
from raysnap.report.tables import Column, DataTable, Row
from raysnap.runs.json_fields import mapping, number
from raysnap.runs.run import Run
from raysnap.runs.trial_rows import TrialRow


def gpu_section(run: Run) -> dict[str, Any] | None:
    """Return everything that the page shows of GPUs; None where no trial had one."""
    kinds: dict[tuple[str, int | None, int | None, int | None], list[TrialRow]] = {}
    for trial in run.trials:
        if trial.gpu_share:
            kind = (trial.architecture, trial.image_size, trial.batch_size, trial.retrain_index)
            kinds.setdefault(kind, []).append(trial)
    if not kinds:
        return None
    rows = tuple(_row(*kind, trials) for kind, trials in sorted(kinds.items(), key=lambda item: str(item[0])))
    columns = (
        Column("architecture", "architecture"),
        Column("image_size", "image size", "count", "edge of the square input image, in pixels"),
        Column("batch_size", "batch size", "count"),
        Column("retrain_index", "r", "count", "retrain index r: number of blocks retrained below the head"),
        Column("trials", "trials", "count"),
        Column("forecast_bytes", "forecast", "bytes", "the most GPU memory that one of them was forecast to take"),
        Column("peak_bytes", "memory", "bytes", "the most GPU memory that one of them took"),
        Column("share", "smallest share of a GPU", "share", "the smallest share of a GPU that one of them had"),
    )
    return {"table": DataTable("gpus", "GPU memory", columns, rows), "sentences": _sentences(run)}


def _row(
    architecture: str,
    image_size: int | None,
    batch_size: int | None,
    retrain_index: int | None,
    trials: list[TrialRow],
) -> Row:
    return Row(
        {
            "architecture": architecture,
            "image_size": image_size,
            "batch_size": batch_size,
            "retrain_index": retrain_index,
            "trials": len(trials),
            "forecast_bytes": max(
                (trial.gpu_forecast_bytes for trial in trials if trial.gpu_forecast_bytes), default=None
            ),
            "peak_bytes": max((trial.gpu_peak_bytes for trial in trials if trial.gpu_peak_bytes), default=None),
            "share": min(trial.gpu_share for trial in trials if trial.gpu_share),
        }
    )


def _sentences(run: Run) -> list[str]:
    """Say how many trials and how many GPUs were at work at once, on average over the stages that train."""
    stages_s = mapping(run.env.get("stages_s"))
    stage_s = sum(number(stages_s.get(name)) or 0.0 for name in ("base", "trials"))
    timed = [(trial.wall_s, trial.gpu_share) for trial in run.trials if trial.wall_s and trial.gpu_share]
    if not stage_s or not timed:
        return []
    at_once = sum(wall_s for wall_s, _ in timed) / stage_s
    gpus = sum(wall_s * share for wall_s, share in timed) / stage_s
    shared = sum(share < 1 for _, share in timed)
    return [
        f"On average {at_once:.1f} trials ran at once and reserved {gpus:.1f} GPUs.",
        f"{plural(shared, 'trial')} shared a GPU with others." if shared else "No trial shared its GPU.",
    ]
