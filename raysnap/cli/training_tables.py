"""What the commands that fine-tune print: tables and lines made from plans and results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.table import Table

from raysnap.cli.console import MAX_ROWS, simple_table
from raysnap.config.choices import Role
from raysnap.humanize import bytes_text, flops_text, plural, score_text, seconds_text, share_text
from raysnap.runs.trial_rows import TrialRow

if TYPE_CHECKING:
    from raysnap.jobs.sweep import SweepSummary
    from raysnap.planning.forecast import Forecast
    from raysnap.planning.gpu_memory import GpuKind
    from raysnap.training.trial import Trial

MAX_NAMES_TAKEN = 5


def trials_table(trials: Iterable[Trial]) -> Table:
    """Return a plan's trials, one per line."""
    rows = [(trial.id, trial.architecture, trial.dataset, _depth(trial), trial.train.epochs) for trial in trials]
    columns = ["trial", "architecture", "dataset", "retrain index", "epochs"]
    return simple_table(columns, rows, numeric=["retrain index", "epochs"])


def _depth(trial: Trial) -> int | str | None:
    """Return how many blocks below the head a trial retrains; None of a base that is not trained."""
    return "all" if trial.retrain_index is None and trial.dataset else trial.retrain_index


def points_table(trials: Sequence[Trial]) -> Table:
    """Return a sweep's trials and the values sampled for them, one column per key."""
    keys = _point_keys(trial.point for trial in trials)
    shown = trials[:MAX_ROWS]
    rows = [(trial.id.partition("-")[0], *(_cell(trial.point, key) for key in keys)) for trial in shown]
    if len(trials) > len(shown):
        rows.append(("…", f"and {len(trials) - len(shown)} more; --json lists all", *[""] * (len(keys) - 1)))
    return simple_table(["trial", *map(_column, keys)], rows)


def sweep_table(rows: Sequence[TrialRow], metric: str, mode: str) -> Table:
    """Return a sweep's fine-tunes whose metric is known, the best first, finished ones before stopped ones."""
    objectives = [(row, row.objective) for row in rows if row.role != Role.BASE and row.objective is not None]
    sign = -1 if mode == "max" else 1
    objectives.sort(key=lambda pair: (not pair[0].is_done, sign * pair[1], pair[0].trial))
    keys = _point_keys(row.point for row, _ in objectives)
    lines = []
    for row, objective in objectives[:MAX_ROWS]:
        seconds = None if row.total_s is None else seconds_text(row.total_s)
        ended = f"stopped: {row.stopped.replace('_', ' ')}" if row.stopped else ""
        cells = [_cell(row.point, key) for key in keys]
        epochs = f"{row.metrics.get('best_epoch', '–')}/{len(row.history)}"
        tested = score_text(row.test_accuracy)
        number = row.trial.partition("-")[0]
        lines.append((number, *cells, score_text(objective), tested, epochs, seconds, ended))
    heads = ["trial", *map(_column, keys), metric.replace("_", " "), "test accuracy", "best epoch", "time", ""]
    return simple_table(heads, lines, numeric=heads[-5:-1])


def sweep_lines(summary: SweepSummary) -> str:
    """Say how a sweep ended: its counts, and its best trial."""
    counts = [
        f"{summary.num_done} of {plural(summary.num_trials, 'trial')} done",
        *([f"{summary.num_stopped} stopped early"] if summary.num_stopped else []),
        *([f"{summary.num_left} not started within the time budget; --resume runs them"] if summary.num_left else []),
        f"{summary.num_failed} failed",
    ]
    best = summary.best
    if best is None:
        return f"{', '.join(counts)}."
    name = summary.renamed.get(best["trial"], best["trial"])
    where = f", stored as {name} ({best['snapshot'][:12]})" if best["snapshot"] else ""
    return f"{', '.join(counts)}.\nBest: {best['trial']} with {summary.metric} {score_text(best['objective'])}{where}."


def renamed_lines(renamed: Mapping[str, str]) -> list[str]:
    """Say which snapshots have another name than their trial, as another snapshot of the store has that."""
    if not renamed:
        return []
    pairs = list(renamed.items())
    shown = [f"  {trial} is {name}" for trial, name in pairs[:MAX_NAMES_TAKEN]]
    more = [f"  and {len(pairs) - len(shown)} more"] if len(pairs) > len(shown) else []
    return ["The names of other snapshots of this store were left to them:", *shown, *more]


def _point_keys(points: Iterable[Mapping[str, Any] | None]) -> list[str]:
    return list(dict.fromkeys(key for point in points for key in point or {}))


def _column(key: str) -> str:
    return key.rpartition(".")[2].replace("_", " ")


def _cell(point: Mapping[str, Any] | None, key: str) -> str:
    """Return a sampled value in few characters; empty if the key was not sampled for this trial."""
    if point is None or key not in point:
        return ""
    value = point[key]
    return f"{value:g}" if isinstance(value, float) else str(value)


def forecast_lines(needed: Forecast, num_finetunes: int, num_bases: int) -> str:
    """Say what a job will take: time, disk, and what is drawn or downloaded first."""
    from raysnap.planning.forecast import GPU_FLOPS_PER_S

    saved = 1 - needed.store_bytes / needed.copied_bytes if needed.copied_bytes else 0.0
    lines = [
        f"{plural(num_finetunes, 'fine-tune')} and {plural(num_bases, 'base')}, {plural(needed.num_epochs, 'epoch')}, "
        f"{flops_text(needed.train_flops)}: roughly {seconds_text(needed.cpu_s)} on this machine's CPUs, or "
        f"{seconds_text(needed.gpu_s)} on one GPU that sustains {flops_text(GPU_FLOPS_PER_S)}/s.",
        f"Store: at most {bytes_text(needed.store_bytes)} of new blocks; copies would take "
        f"{bytes_text(needed.copied_bytes)} ({share_text(saved)} saved).",
        f"Also on disk: checkpoints at most {bytes_text(needed.checkpoint_bytes)} at a time, decoded images "
        f"{bytes_text(needed.pixel_bytes)}, cached outputs of frozen blocks {bytes_text(needed.prefix_bytes)}.",
    ]
    lines += [f"To be drawn first: {', '.join(needed.to_draw)}."] if needed.to_draw else []
    lines += [f"To be downloaded first: {', '.join(needed.to_download)}."] if needed.to_download else []
    lines += [f"Input: {line}." for line in needed.inputs]
    return "\n".join([*lines, "Nothing was written."])


def gpu_memory_table(needed: Forecast) -> Table:
    """Return what trials are forecast to take of a GPU: one line for all that differ in their retrain index only."""
    groups: dict[tuple[str, int, int], list[GpuKind]] = {}
    for kind in needed.gpu_kinds:
        groups.setdefault((kind.architecture, kind.image_size, kind.batch_size), []).append(kind)
    rows: list[tuple[Any, ...]] = []
    for facts, kinds in list(groups.items())[:MAX_ROWS]:
        depths = ["all" if kind.retrain_index is None else str(kind.retrain_index) for kind in kinds]
        peaks = [bytes_text(peak) for peak in sorted(kind.peak_bytes for kind in kinds)]
        per_gpu = [str(number) for number in sorted(kind.per_gpu for kind in kinds if kind.per_gpu is not None)]
        num_trials = sum(kind.num_trials for kind in kinds)
        rows.append((*facts, _span(depths), num_trials, _span(peaks), _span(per_gpu) if per_gpu else None))
    if len(groups) > len(rows):
        rows.append((f"… and {len(groups) - len(rows)} more; --json lists all", *[""] * 6))
    columns = ["architecture", "image size", "batch size", "retrain index", "trials", "GPU memory", "trials per GPU"]
    return simple_table(columns, rows, numeric=columns[1:])


def _span(ends: Sequence[str]) -> str:
    """Return the first and the last of some values as one text, once where they are equal."""
    return " to ".join(dict.fromkeys((ends[0], ends[-1])))


def trained_table(trials: Iterable[TrialRow]) -> Table:
    """Sum up finished trials by dataset and architecture: how many, how good, and which is best on val."""
    groups: dict[tuple[str, str], list[TrialRow]] = {}
    for trial in trials:
        groups.setdefault((trial.dataset or "", trial.architecture), []).append(trial)
    rows = []
    for (dataset, architecture), found in sorted(groups.items()):
        scored = [(trial.val_accuracy, trial) for trial in found if trial.val_accuracy is not None]
        best = max(scored, key=lambda pair: pair[0], default=(None, None))[1]
        rows.append(
            (
                dataset,
                architecture,
                len(found),
                score_text(median(accuracy for accuracy, _ in scored)) if scored else None,
                score_text(best.val_accuracy) if best else None,
                score_text(best.test_accuracy) if best else None,
                best.name if best else None,
                seconds_text(sum(trial.total_s or 0.0 for trial in found)),
            )
        )
    columns = ["dataset", "architecture", "trials", "median val", "best val", "its test", "best", "time"]
    return simple_table(columns, rows, numeric=["trials", "median val", "best val", "its test", "time"])
