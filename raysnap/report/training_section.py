"""What a report says of training: where the time went, accuracy by epoch, whether more retrained blocks pay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from raysnap.config.choices import Role
from raysnap.humanize import plural, score_text, seconds_text, seconds_unit
from raysnap.report import bar_charts, line_charts
from raysnap.runs.json_fields import mapping, number
from raysnap.runs.questions import short_dataset
from raysnap.runs.run import Run
from raysnap.runs.store_contents import Holdings
from raysnap.runs.trial_rows import TrialRow

MAX_LINES_PER_PANEL = 60
MAX_PANELS = 48
STAGE_STYLES = ("phase-decode", "phase-load", "phase-inference", "phase-proxy", "phase-plan")


def training_section(run: Run, holdings: Holdings) -> dict[str, Any]:
    """Everything that the page shows of how trials were trained."""
    groups: dict[tuple[str, str | None], list[TrialRow]] = {}
    for trial in run.trials:
        groups.setdefault((trial.role, trial.dataset), []).append(trial)
    chances = _chances(run, holdings)
    values = [y for trial in run.trials for _, y in trial.curve] + list(chances.values())
    epochs = [x for trial in run.trials for x, _ in trial.curve]
    y_range = line_charts.shared_range(values)
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
        line_charts.Line(
            f"{trial.name} (r = {trial.retrain_index})" if trial.retrain_index is not None else trial.name,
            trial.curve,
            strength=min(1.0, trial.retrain_index / trial.num_blocks)
            if trial.retrain_index is not None and trial.num_blocks
            else 1.0,
            is_broken=trial.has_failed,
        )
        for trial in drawn
    ]
    return line_charts.line_panel(name, note, lines, x_range, y_range, chance)


def _chances(run: Run, holdings: Holdings) -> dict[str | None, float]:
    """The accuracy that guessing reaches on each dataset whose number of classes is known."""
    of_snapshot = {one.id: one.num_classes for one in holdings.snapshots}
    known = {trial.dataset: trial.num_classes or of_snapshot.get(trial.snapshot or "") for trial in run.done_trials}
    return {dataset: 1 / num_classes for dataset, num_classes in known.items() if num_classes}


def _thinned(items: list[TrialRow], limit: int) -> list[TrialRow]:
    """At most `limit` items, evenly spread, the first and the last among them."""
    if len(items) <= limit:
        return items
    return [items[round(index * (len(items) - 1) / (limit - 1))] for index in range(limit)]


def _retrain_charts(trials: Sequence[TrialRow]) -> list[Markup]:
    """Validation accuracy over the retrain index, one chart per architecture."""
    by_architecture: dict[str, list[TrialRow]] = {}
    for trial in trials:
        if trial.is_done and trial.retrain_index is not None and trial.val_accuracy is not None:
            by_architecture.setdefault(trial.architecture, []).append(trial)
    return [Markup(_retrain_chart(architecture, group)) for architecture, group in sorted(by_architecture.items())]


def _retrain_chart(architecture: str, trials: list[TrialRow]) -> str:
    by_dataset: dict[str, list[TrialRow]] = {}
    for trial in sorted(trials, key=lambda trial: trial.dataset or ""):
        by_dataset.setdefault(short_dataset(trial.dataset), []).append(trial)
    series = [
        line_charts.Series(
            dataset,
            tuple(
                (one.retrain_index, one.val_accuracy, f"{one.name}: r = {one.retrain_index}, {one.val_accuracy:.3f}")
                for one in group
            ),
        )
        for dataset, group in by_dataset.items()
    ]
    most = max(max(trial.retrain_index, trial.num_blocks or 0) for trial in trials)
    return line_charts.point_chart(
        series,
        f"Validation accuracy over the retrain index of {architecture}",
        f"retrain index r of {architecture}: blocks retrained below the head",
        "validation accuracy",
        (0, most),
        line_charts.shared_range([trial.val_accuracy for trial in trials]),
        "head only",
    )


def _stages(run: Run) -> Markup | None:
    """One bar: where the wall time of the run went."""
    found = {name: number(value) for name, value in mapping(run.env.get("stages_s")).items()}
    stages_s = {name: value for name, value in found.items() if value is not None and value >= 0}
    if not stages_s or not sum(stages_s.values()):
        return None
    segments = [
        bar_charts.Segment(name, name, STAGE_STYLES[index % len(STAGE_STYLES)]) for index, name in enumerate(stages_s)
    ]
    rest_s = (number(run.env.get("wall_s")) or 0.0) - sum(stages_s.values())
    if rest_s > 0:
        segments.append(bar_charts.Segment(" rest", "rest", "phase-rest"))
        stages_s[" rest"] = rest_s
    bars = [bar_charts.StackedBar("wall time", stages_s)]
    return Markup(
        bar_charts.stacked_bars(
            bars, segments, "Wall time of the run by stage", "wall time", seconds_text, seconds_unit
        )
    )
