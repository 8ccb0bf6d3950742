"""A run directory as one self-contained HTML page: records and holdings in, sections of text, tables and charts out.

The page loads nothing: style, script and charts are inline, and its content security policy forbids the rest.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from raysnap import charts, summary
from raysnap.errors import UsageError
from raysnap.holdings import HeldSnapshot, Holdings, read_holdings
from raysnap.places import write_atomically
from raysnap.quantities import (
    bytes_text,
    bytes_unit,
    count_text,
    flops_text,
    plural,
    ratio_text,
    score_text,
    seconds_text,
    seconds_unit,
    share_text,
)
from raysnap.records import MethodRuns, Question, Run, Trial, mapping, number, read_run
from raysnap.summary import short_dataset

TEMPLATES_DIR = Path(__file__).resolve().parent / "templates"
MAX_LINES_PER_PANEL = 60
MAX_PANELS = 48
MAX_MAP_ROWS = 300
MAX_RANKED_AT_ONCE = 12

PHASES = (
    charts.Segment("plan", "plan", "phase-plan"),
    charts.Segment("load_blocks", "load blocks", "phase-load"),
    charts.Segment("decode", "decode", "phase-decode"),
    charts.Segment("inference", "inference", "phase-inference"),
    charts.Segment("proxy", "proxy", "phase-proxy"),
    charts.Segment("rest", "rest", "phase-rest"),
)
STAGE_STYLES = ("phase-decode", "phase-load", "phase-inference", "phase-proxy", "phase-plan")


def write_report(run_dir: Path, out_path: Path | None = None) -> Path:
    """The path of the page that shows `run_dir`: `out_path`, or report.html inside the run directory.

    A reader sees the old page or the whole new one, never a part.

    Raises:
        UsageError: `run_dir` is no folder, or the page can't be written.
        DataError: the run directory holds no results, or broken ones.
    """
    page = render(read_run(run_dir))
    target = out_path or run_dir / "report.html"
    if target.is_dir():
        raise UsageError(f"{target}: expected the name of an HTML file to write, found a folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, page)
    except OSError as error:
        raise UsageError(f"{target}: the report can't be written: {error.strerror or error}") from None
    return target


def render(run: Run) -> str:
    """The page as HTML."""
    holdings = read_holdings(run)
    script = (TEMPLATES_DIR / "report.js").read_text("utf-8")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES_DIR),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        seconds=seconds_text,
        bytes=bytes_text,
        count=count_text,
        score=score_text,
        flops=flops_text,
        share=share_text,
        dataset=short_dataset,
        plural=plural,
    )
    return environment.get_template("report.html.j2").render(
        run=run,
        facts=_facts(run),
        headline=summary.headline(run),
        sentences=summary.sentences(run, holdings),
        key_figures=summary.key_figures(run, holdings),
        questions=[_question_section(question, run) for question in run.questions],
        store=_store_section(run, holdings),
        training=_training_section(run, holdings),
        failures=_failures(run),
        trials=run.trials,
        statuses=_statuses(run.trials),
        environment=_environment(run),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _facts(run: Run) -> list[str]:
    """When and on what the run ran, for the line above the headline."""
    started, cpu = run.env.get("started"), run.env.get("cpu")
    when = [f"{started[:16].replace('T', ' ')} UTC"] if isinstance(started, str) and started else []
    return [*when, *([cpu] if isinstance(cpu, str) and cpu else [])]


def _question_section(question: Question, run: Run) -> dict[str, Any]:
    return {
        "dataset": question.dataset,
        "proxy": question.proxy,
        "reference": question.reference.method,
        "ranking": _ranking(question, run),
        "num_shown": MAX_RANKED_AT_ONCE,
        "others": [one.method for one in question.methods if one is not question.reference],
        "breakdown": Markup(_breakdown(question)),
        "timings": [_timing_row(question, one) for one in question.methods],
        "num_repeats": max(len(one.searches) for one in question.methods),
        "agreements": _agreements(question),
        "is_tied": any(one.is_tied for one in question.reference.median_run.ranking[1:]),
    }


def _ranking(question: Question, run: Run) -> list[dict[str, Any]]:
    ranking = sorted(question.reference.median_run.ranking, key=lambda one: one.rank)
    places = {
        one.method: {ranked.snapshot: ranked.rank for ranked in one.median_run.ranking}
        for one in question.methods
        if one is not question.reference
    }
    scores = [one.score for one in ranking if one.score is not None]
    low = min([0.0, *scores])
    span = max([1.0 if low == 0 else 0.0, *scores]) - low
    rows = []
    for one in ranking:
        trial = run.trial_of.get(one.snapshot)
        rows.append(
            {
                "ranked": one,
                "trial": trial,
                "bar": 0.0 if one.score is None or not span else (one.score - low) / span,
                "places": [ranks.get(one.snapshot) for ranks in places.values()],
            }
        )
    return rows


def _breakdown(question: Question) -> str:
    bars = [
        charts.StackedBar(
            one.method,
            one.median_run.phases_s,
            tuple(one.totals_s) if len(one.searches) > 1 else (),
            "" if one is question.slowest else f"{ratio_text(question.speed_up(one))} faster",
        )
        for one in question.methods
    ]
    title = f"Time of each search method on {question.dataset} by phase, in seconds"
    return charts.stacked_bars(bars, PHASES, title, "time of one search, the median run", seconds_text, seconds_unit)


def _timing_row(question: Question, one: MethodRuns) -> dict[str, Any]:
    return {
        "method": one.method,
        "median_s": one.median_s,
        "range": f"{seconds_text(min(one.totals_s))} to {seconds_text(max(one.totals_s))}",
        "num_runs": len(one.searches),
        "is_noisy": one.is_noisy,
        "is_fastest": one is question.fastest and len(question.methods) > 1,
        "speed_up": ratio_text(question.speed_up(one)),
        "work": one.median_run.work,
        "peak_activation_bytes": one.median_run.peak_activation_bytes,
        "regret": summary.regret(question, one.method),
        "is_reference": one is question.reference,
    }


def _agreements(question: Question) -> list[str]:
    """The laws of the methods, checked on this run."""
    told = []
    difference = summary.largest_difference(question, "baseline", "shared")
    if difference is not None:
        same = "the score" if difference <= 1e-6 else f"a score within {difference:.2g} of the one"
        told.append(f"shared gives every candidate {same} that baseline gives.")
    for one, other in (("shift", "alsatian"), ("baseline", "shared")):
        matches = summary.ranking_matches(question, one, other)
        if matches is not None:
            told.append(f"{other} {'ranks as' if matches else 'does not rank as'} {one} does.")
    noisy = [one.method for one in question.methods if one.is_noisy]
    if noisy:
        told.append(
            f"{', '.join(noisy)}: the middle half of the runs spreads over more than 10 % of the median, "
            "so take these times with care."
        )
    return told


def _store_section(run: Run, holdings: Holdings) -> dict[str, Any]:
    added, copied = summary.recorded_bytes(run)
    own, once, copies = holdings.split_bytes()
    return {
        "holdings": holdings,
        "recorded": (added, copied) if copied and not holdings.snapshots else None,
        "savings": Markup(_savings_chart(own, once, copies)) if holdings.snapshots else None,
        "maps": [_map(architecture, held) for architecture, held in _by_architecture(holdings.snapshots)],
    }


def _savings_chart(own: int, once: int, copies: int) -> str:
    segments = (
        charts.Segment("shared", "blocks that several snapshots hold", "bytes-shared"),
        charts.Segment("own", "blocks of one snapshot", "bytes-own"),
    )
    bars = [
        charts.StackedBar("as whole copies", {"shared": copies, "own": own}),
        charts.StackedBar("in the store", {"shared": once, "own": own}),
    ]
    title = "Bytes of the run's snapshots as whole copies and in the store"
    return charts.stacked_bars(bars, segments, title, "bytes of the run's snapshots", bytes_text, bytes_unit)


def _by_architecture(snapshots: Sequence[HeldSnapshot]) -> list[tuple[str, list[HeldSnapshot]]]:
    groups: dict[tuple[str, tuple[str, ...]], list[HeldSnapshot]] = {}
    for snapshot in snapshots:
        names = tuple(name for name, _, _ in snapshot.blocks)
        groups.setdefault((snapshot.architecture, names), []).append(snapshot)
    return [(architecture, held) for (architecture, _), held in groups.items()]


def _map(architecture: str, held: list[HeldSnapshot]) -> dict[str, Any]:
    shown = held[:MAX_MAP_ROWS]
    rows = [charts.MapRow(one.name, tuple(digest for _, digest, _ in one.blocks)) for one in shown]
    sizes = zip(*([num_bytes for _, _, num_bytes in one.blocks] for one in shown), strict=True)
    names = [name for name, _, _ in shown[0].blocks]
    columns = [charts.MapColumn(name, bytes_text(max(size))) for name, size in zip(names, sizes, strict=True)]
    num_unique = len({digest for row in rows for digest in row.digests})
    title = f"Which of {len(rows)} {architecture} snapshots share which of {len(columns)} blocks"
    return {
        "architecture": architecture,
        "picture": Markup(charts.block_map(rows, columns, title)),
        "num_rows": len(rows),
        "num_snapshots": len(held),
        "num_unique": num_unique,
        "num_cells": len(rows) * len(columns),
    }


def _training_section(run: Run, holdings: Holdings) -> dict[str, Any]:
    groups: dict[tuple[str, str | None], list[Trial]] = {}
    for trial in run.trials:
        groups.setdefault((trial.role, trial.dataset), []).append(trial)
    chances = _chances(run, holdings)
    values = [y for trial in run.trials for _, y in trial.curve] + list(chances.values())
    epochs = [x for trial in run.trials for x, _ in trial.curve]
    y_range = charts.shared_range(values)
    x_range = (min(epochs, default=1.0), max(epochs, default=1.0))
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] != "base", item[0][1] or ""))
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
    trials: list[Trial],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    chance: float | None,
) -> str:
    best = max((trial.val_accuracy for trial in trials if trial.val_accuracy is not None), default=None)
    name = short_dataset(dataset) + (" (base)" if role == "base" else "")
    note = f"{plural(len(trials), 'trial')}, best {score_text(best)}"
    drawn = _thinned(sorted(trials, key=lambda trial: trial.val_accuracy or 0.0), MAX_LINES_PER_PANEL)
    lines = [
        charts.Line(
            f"{trial.name} (r = {trial.retrain_index})" if trial.retrain_index is not None else trial.name,
            trial.curve,
            strength=min(1.0, trial.retrain_index / trial.num_blocks)
            if trial.retrain_index is not None and trial.num_blocks
            else 1.0,
            is_broken=not trial.is_done,
        )
        for trial in drawn
    ]
    return charts.line_panel(name, note, lines, x_range, y_range, chance)


def _chances(run: Run, holdings: Holdings) -> dict[str | None, float]:
    """The accuracy that guessing reaches on each dataset whose number of classes is known."""
    of_snapshot = {one.id: one.num_classes for one in holdings.snapshots}
    known = {trial.dataset: trial.num_classes or of_snapshot.get(trial.snapshot or "") for trial in run.done_trials}
    return {dataset: 1 / num_classes for dataset, num_classes in known.items() if num_classes}


def _thinned(items: list[Trial], limit: int) -> list[Trial]:
    """At most `limit` items, evenly spread, the first and the last among them."""
    if len(items) <= limit:
        return items
    return [items[round(index * (len(items) - 1) / (limit - 1))] for index in range(limit)]


def _retrain_charts(trials: Sequence[Trial]) -> list[Markup]:
    """Validation accuracy over the retrain index, one chart per architecture."""
    by_architecture: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.is_done and trial.retrain_index is not None and trial.val_accuracy is not None:
            by_architecture.setdefault(trial.architecture, []).append(trial)
    return [Markup(_retrain_chart(architecture, group)) for architecture, group in sorted(by_architecture.items())]


def _retrain_chart(architecture: str, trials: list[Trial]) -> str:
    by_dataset: dict[str, list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.dataset or ""):
        by_dataset.setdefault(short_dataset(trial.dataset), []).append(trial)
    series = [
        charts.Series(
            dataset,
            tuple(
                (one.retrain_index, one.val_accuracy, f"{one.name}: r = {one.retrain_index}, {one.val_accuracy:.3f}")
                for one in group
            ),
        )
        for dataset, group in by_dataset.items()
    ]
    most = max(max(trial.retrain_index, trial.num_blocks or 0) for trial in trials)
    return charts.point_chart(
        series,
        f"Validation accuracy over the retrain index of {architecture}",
        f"retrain index r of {architecture}: blocks retrained below the head",
        "validation accuracy",
        (0, most),
        charts.shared_range([trial.val_accuracy for trial in trials]),
        "head only",
    )


def _stages(run: Run) -> Markup | None:
    """One bar: where the wall time of the run went."""
    found = {name: number(value) for name, value in mapping(run.env.get("stages_s")).items()}
    stages_s = {name: value for name, value in found.items() if value is not None and value >= 0}
    if not stages_s or not sum(stages_s.values()):
        return None
    segments = [
        charts.Segment(name, name, STAGE_STYLES[index % len(STAGE_STYLES)]) for index, name in enumerate(stages_s)
    ]
    rest_s = (number(run.env.get("wall_s")) or 0.0) - sum(stages_s.values())
    if rest_s > 0:
        segments.append(charts.Segment(" rest", "rest", "phase-rest"))
        stages_s[" rest"] = rest_s
    bars = [charts.StackedBar("wall time", stages_s)]
    return Markup(
        charts.stacked_bars(bars, segments, "Wall time of the run by stage", "wall time", seconds_text, seconds_unit)
    )


def _failures(run: Run) -> list[dict[str, str]]:
    """Everything that went wrong: trials, searches, and candidates that a search skipped."""
    rows = [
        {"what": "trial", "name": trial.name, "status": trial.status, "error": trial.error or "no reason was recorded"}
        for trial in run.trials
        if not trial.is_done
    ]
    skipped: dict[tuple[str, str], list[str]] = {}
    for search in run.searches:
        if not search.is_done:
            error = search.error or "no reason was recorded"
            name = f"{search.cell}, run {search.repeat + 1}"
            rows.append({"what": "search", "name": name, "status": search.status, "error": error})
        for snapshot, error in search.skipped:
            skipped.setdefault((snapshot, error), []).append(search.method)
    for (snapshot, error), methods in skipped.items():
        trial = run.trial_of.get(snapshot)
        name = f"{trial.name if trial else snapshot[:12]} ({', '.join(dict.fromkeys(methods))})"
        rows.append({"what": "candidate", "name": name, "status": "skipped", "error": error})
    return rows


def _statuses(trials: Sequence[Trial]) -> list[tuple[str, int]]:
    names = dict.fromkeys(trial.status for trial in trials)
    return [(name, sum(trial.status == name for trial in trials)) for name in names]


def _environment(run: Run) -> list[tuple[str, str]]:
    """(name, value) of what the run ran on and with."""
    env = run.env
    gpus = env.get("gpus")
    rows = [
        ("started", env.get("started")),
        ("finished", env.get("finished")),
        ("wall time", seconds_text(number(env.get("wall_s"))) if number(env.get("wall_s")) is not None else None),
        ("seed", env.get("seed")),
        ("commit", env.get("commit")),
        ("platform", env.get("platform")),
        ("CPU", env.get("cpu")),
        ("CPU cores", env.get("num_cpus")),
        ("GPUs", ", ".join(map(str, gpus)) or "none" if isinstance(gpus, list) else None),
        *((name, env.get(name)) for name in ("raysnap", "python", "torch", "torchvision", "ray")),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]
