"""What a report shows of training: where the time went, accuracy by epoch, the effect of retraining more blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from raysnap.config.choices import Role
from raysnap.humanize import plural, score_text, seconds_text, seconds_unit
from raysnap.report.charts.bars import Segment, StackedBar, stacked_bars
from raysnap.report.charts.lines import Line, Series, line_panel, point_chart, shared_range
from raysnap.runs.json_fields import mapping, number
from raysnap.runs.questions import short_dataset
from raysnap.runs.run import Run
from raysnap.runs.store_contents import StoreContents
from raysnap.runs.trial_rows import TrialRow

MAX_LINES_PER_PANEL = 60
MAX_PANELS = 48
STAGE_STYLES = ("phase-decode", "phase-load", "phase-inference", "phase-proxy", "phase-plan")


def training_section(run: Run, contents: StoreContents) -> dict[str, Any]:
    """Return everything that the page shows of how trials were trained."""
    groups: dict[tuple[str, str | None], list[TrialRow]] = {}
    for trial in run.trials:
        groups.setdefault((trial.role, trial.dataset), []).append(trial)
    chances = _chances(run, contents)
    values = [y for trial in run.trials for _, y in trial.curve] + list(chances.values())
    epochs = [x for trial in run.trials for x, _ in trial.curve]
    y_range = shared_range(values)
    x_range = (min(epochs, default=1.0), max(epochs, default=1.0))
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] != Role.BASE, item[0][1] or ""))
    panels = [
        Markup(_panel(role, dataset, trials, x_range, y_range, chances.get(dataset)))
        for (role, dataset), trials in ordered[:MAX_PANELS]
        if any(trial.curve for trial in trials)
    ]
    return {
        "panels": panels,
        "num_panels_left_out": max(0, len(ordered) - MAX_PANELS),
        "max_lines": MAX_LINES_PER_PANEL,
        "is_thinned": any(len(trials) > MAX_LINES_PER_PANEL for trials in groups.values()),
        "retrain": _retrain_charts(run.trials),
        "stages": _stages(run),
    }


def _panel(
    role: str,
    dataset: str | None,
    trials: list[TrialRow],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    chance: float | None,
) -> str:
    best = max((trial.val_accuracy for trial in trials if trial.val_accuracy is not None), default=None)
    name = short_dataset(dataset) + (" (base)" if role == Role.BASE else "")
    note = f"{plural(len(trials), 'trial')}, best {score_text(best)}"
    drawn = _thinned(sorted(trials, key=lambda trial: trial.val_accuracy or 0.0), MAX_LINES_PER_PANEL)
    lines = [
        Line(
            f"{trial.name} (r = {trial.retrain_index})" if trial.retrain_index is not None else trial.name,
            trial.curve,
            strength=min(1.0, trial.retrain_index / trial.num_blocks)
            if trial.retrain_index is not None and trial.num_blocks
            else 1.0,
            is_broken=trial.has_failed,
        )
        for trial in drawn
    ]
    return line_panel(name, note, lines, x_range, y_range, chance)


def _chances(run: Run, contents: StoreContents) -> dict[str | None, float]:
    """Return the accuracy of guessing on each dataset whose number of classes is known."""
    of_snapshot = {snapshot.id: snapshot.num_classes for snapshot in contents.snapshots}
    known = {trial.dataset: trial.num_classes or of_snapshot.get(trial.snapshot or "") for trial in run.done_trials}
    return {dataset: 1 / num_classes for dataset, num_classes in known.items() if num_classes}


def _thinned(items: list[TrialRow], limit: int) -> list[TrialRow]:
    """Return at most `limit` of the items, evenly spaced, with the first and the last."""
    if len(items) <= limit:
        return items
    return [items[round(index * (len(items) - 1) / (limit - 1))] for index in range(limit)]


def _retrain_charts(trials: Sequence[TrialRow]) -> list[Markup]:
    """Draw validation accuracy over the retrain index, one chart per architecture."""
    by_architecture: dict[str, list[_Retrained]] = {}
    for trial in sorted(trials, key=lambda trial: trial.dataset or ""):
        if trial.is_done and trial.retrain_index is not None and trial.val_accuracy is not None:
            point = _Retrained(trial, trial.retrain_index, trial.val_accuracy)
            by_architecture.setdefault(trial.architecture, []).append(point)
    return [Markup(_retrain_chart(architecture, points)) for architecture, points in sorted(by_architecture.items())]


class _Retrained(NamedTuple):
    """A trial whose retrain index and accuracy are known."""

    trial: TrialRow
    retrain_index: int
    val_accuracy: float


def _retrain_chart(architecture: str, points: list[_Retrained]) -> str:
    by_dataset: dict[str, list[tuple[float, float, str]]] = {}
    for trial, index, accuracy in points:
        hint = f"{trial.name}: r = {index}, {accuracy:.3f}"
        by_dataset.setdefault(short_dataset(trial.dataset), []).append((index, accuracy, hint))
    most = max(max(index, trial.num_blocks or 0) for trial, index, _ in points)
    return point_chart(
        [Series(dataset, tuple(found)) for dataset, found in by_dataset.items()],
        f"Validation accuracy over the retrain index of {architecture}",
        f"retrain index r of {architecture}: number of blocks retrained below the head",
        "validation accuracy",
        (0, most),
        shared_range([accuracy for _, _, accuracy in points]),
        "head only",
    )


def _stages(run: Run) -> Markup | None:
    """Draw where the wall time of the run went, as one bar."""
    found = {name: number(value) for name, value in mapping(run.env.get("stages_s")).items()}
    stages_s = {name: value for name, value in found.items() if value is not None and value >= 0}
    if not stages_s or not sum(stages_s.values()):
        return None
    segments = [Segment(name, name, STAGE_STYLES[index % len(STAGE_STYLES)]) for index, name in enumerate(stages_s)]
    rest_s = (number(run.env.get("wall_s")) or 0.0) - sum(stages_s.values())
    if rest_s > 0:
        segments.append(Segment(" rest", "rest", "phase-rest"))
        stages_s[" rest"] = rest_s
    bars = [StackedBar("wall time", stages_s)]
    return Markup(
        stacked_bars(bars, segments, "Wall time of the run by stage", "wall time", seconds_text, seconds_unit)
    )
