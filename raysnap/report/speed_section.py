"""What a report shows of search times: each method against the others and its lower bound, and rung by rung."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from raysnap.humanize import count_text, plural, ratio_text, seconds_text, seconds_unit
from raysnap.report.charts.bars import Segment, StackedBar, stacked_bars
from raysnap.report.charts.dots import DotRow, dot_rows
from raysnap.report.headlines import SAME_TIME
from raysnap.report.tables import Chip, Column, DataTable, Row, without_empty
from raysnap.runs.method_agreement import largest_difference, ranks_alike, regret
from raysnap.runs.questions import MethodRuns, Question
from raysnap.runs.run import Run
from raysnap.runs.search_rows import RungRow

MAX_OPEN_QUESTIONS = 6
MAX_SPEED_UPS_SHOWN = 40

PHASES = (
    Segment("start_workers", "start of workers", "phase-start"),
    Segment("plan", "plan", "phase-plan"),
    Segment("load_blocks", "load blocks", "phase-load"),
    Segment("decode", "decode images", "phase-decode"),
    Segment("inference", "inference", "phase-inference"),
    Segment("proxy", "proxy", "phase-proxy"),
    Segment("rest", "rest", "phase-rest"),
)
UNSPLIT = Segment("rest", "not split by phase", "phase-rest")
WHOLE_RUNG = Segment("rest", "whole rung", "phase-inference")


def speed_section(run: Run) -> dict[str, Any]:
    """Return everything that the page shows of the times of searches."""
    questions = [_question(number, question) for number, question in enumerate(run.questions, start=1)]
    has_several = len(questions) > 1
    return {
        "questions": questions,
        "num_open": min(MAX_OPEN_QUESTIONS, len(questions)),
        "speed_ups": _speed_ups(run) if has_several else None,
        "overview": _overview(run) if has_several else None,
    }


def _question(number: int, question: Question) -> dict[str, Any]:
    return {
        "title": question.title,
        "breakdown": Markup(_breakdown(question)),
        "has_bound": any(runs.median_run.bound_s for runs in question.methods),
        "timings": _timings(number, question),
        "rungs": _rungs_chart(question),
        "rungs_table": _rungs_table(number, question),
        "num_repeats": max(len(runs.searches) for runs in question.methods),
        "checks": _checks(question),
        "noise": [f"{runs.method}: {'; '.join(runs.noise)}." for runs in question.methods if runs.is_noisy],
    }


def compared_text(speed_up: float) -> str:
    """Say in few words how a time compares: a gain or a loss, and nothing where it is neither."""
    if abs(math.log(speed_up)) < SAME_TIME:
        return ""
    return f"{ratio_text(speed_up)} faster" if speed_up > 1 else f"{ratio_text(1 / speed_up)} as long"


def _breakdown(question: Question) -> str:
    """Draw a bar per method, split by phase."""
    bars = [
        StackedBar(
            runs.method,
            runs.median_run.phases_s,
            tuple(runs.totals_s) if len(runs.searches) > 1 else (),
            "" if runs is question.slowest else compared_text(question.speed_up(runs)),
            runs.median_run.bound_s,
        )
        for runs in question.methods
    ]
    phases = PHASES if any(runs.median_run.has_phases for runs in question.methods) else (UNSPLIT,)
    title = f"Time of each search method on {question.title} by phase, in seconds"
    return stacked_bars(bars, phases, title, "time of one search, median run", seconds_text, seconds_unit)


def _timings(number: int, question: Question) -> DataTable:
    rows = tuple(_timing_row(question, runs) for runs in question.methods)
    reference = question.reference.method
    columns = [
        Column("method", "method", "name"),
        Column("median_s", "median", "seconds"),
        Column("num_runs", "runs", "count"),
        Column("precision", "precision", is_on_page=False),
        Column("least_s", "fastest run", "seconds", is_on_page=False),
        Column("most_s", "slowest run", "seconds", is_on_page=False),
        Column(
            "speed_up",
            "speed-up",
            "ratio",
            f"compared with {question.slowest.method}",
            is_on_page=len(question.methods) > 1,
        ),
        Column("bound_s", "lower bound", "seconds", "the time of this work at the best speed measured for each block"),
        Column("over_bound", "× bound", "ratio", "median time divided by its lower bound"),
        Column("block_item_passes", "block passes", "count", "number of times that a block ran on an item"),
        Column("flops", "compute", "flops"),
        Column("block_bytes_read", "blocks read", "bytes"),
        Column("disk_bytes_read", "from disk", "bytes", "bytes read from the disk, not from memory"),
        Column("images_decoded", "images decoded", "count", is_on_page=False),
        Column("peak_activation_bytes", "peak activations", "bytes", "most memory taken by intermediate activations"),
        Column("peak_memory_bytes", "peak memory", "bytes"),
        Column(
            "regret",
            "regret",
            "score",
            f"score of the best snapshot by {reference}, minus its score of this method's winner",
        ),
    ]
    caption = f"Search methods on {question.title}, slowest first"
    return DataTable(f"timings_{number:02d}", caption, without_empty(columns, rows), rows)


def _timing_row(question: Question, runs: MethodRuns) -> Row:
    search = runs.median_run
    values = {
        "method": runs.method,
        "median_s": runs.median_s,
        "num_runs": len(runs.searches),
        "precision": search.computed_precision,
        "least_s": min(runs.totals_s),
        "most_s": max(runs.totals_s),
        "speed_up": question.speed_up(runs),
        "bound_s": search.bound_s,
        "over_bound": runs.median_s / search.bound_s if search.bound_s else None,
        "block_item_passes": search.work.get("block_item_passes"),
        "flops": search.work.get("flops"),
        "block_bytes_read": search.work.get("block_bytes_read"),
        "disk_bytes_read": search.read_bytes,
        "images_decoded": search.work.get("images_decoded"),
        "peak_activation_bytes": search.peak_activation_bytes,
        "peak_memory_bytes": search.peak_memory_bytes,
        "regret": regret(question, runs.method) if len(question.methods) > 1 else None,
    }
    chips: dict[str, tuple[Chip, ...]] = {"method": (("noisy", "warn"),)} if runs.is_noisy else {}
    is_fastest = runs is question.fastest and len(question.methods) > 1
    return Row(values, chips, hints={"method": "; ".join(runs.noise)}, css="first" if is_fastest else "")


def _rungs_of(question: Question) -> list[tuple[str, int, RungRow]]:
    """Return (method, number, rung) of the methods that have more than one rung."""
    with_rungs = [runs for runs in question.methods if len(runs.median_run.rungs) > 1]
    return [(runs.method, number, rung) for runs in with_rungs for number, rung in enumerate(runs.median_run.rungs, 1)]


def _rungs_chart(question: Question) -> Markup | None:
    rungs = _rungs_of(question)
    bars = []
    for method, number, rung in rungs:
        note = f"{_counted(rung.num_candidates, 'candidate')} × {_counted(rung.num_train, 'item')}"
        kept = "" if rung.num_kept is None else f", {count_text(rung.num_kept)} kept"
        bars.append(StackedBar(f"{method}, rung {number}", rung.phases_s, note=note + kept))
    if not bars:
        return None
    phases = PHASES if any(rung.has_phases for _, _, rung in rungs) else (WHOLE_RUNG,)
    title = f"Time of each rung on {question.title}, in seconds"
    return Markup(stacked_bars(bars, phases, title, "time of one rung", seconds_text, seconds_unit))


def _counted(count: int | None, noun: str) -> str:
    return f"? {noun}s" if count is None else plural(count, noun)


def _rungs_table(number: int, question: Question) -> DataTable | None:
    rows = tuple(
        Row(
            {"method": method, "rung": index, "num_candidates": rung.num_candidates}
            | {"num_train": rung.num_train, "num_test": rung.num_test, "total_s": rung.total_s}
            | {"num_kept": rung.num_kept, "expected_loss": rung.expected_loss, **rung.work}
            | {f"{phase}_s": value for phase, value in rung.phases_s.items() if rung.has_phases}
        )
        for method, index, rung in _rungs_of(question)
    )
    loss = "how much better than the leader the best candidate is expected to be on new items"
    columns = [
        Column("method", "method", "name"),
        Column("rung", "rung", "count"),
        Column("num_candidates", "candidates", "count"),
        Column("num_train", "train items", "count"),
        Column("num_test", "test items", "count"),
        Column("num_kept", "kept", "count", "candidates kept for the next rung"),
        Column("expected_loss", "expected loss", "score", loss),
        Column("total_s", "time", "seconds"),
        *(Column(f"{phase.key}_s", phase.name, "seconds") for phase in PHASES),
        Column("block_item_passes", "block passes", "count", "number of times that a block ran on an item"),
        Column("flops", "compute", "flops"),
        Column("block_bytes_read", "blocks read", "bytes"),
    ]
    caption = f"Rungs on {question.title}"
    return DataTable(f"rungs_{number:02d}", caption, without_empty(columns, rows), rows) if rows else None


def _checks(question: Question) -> list[str]:
    """Say whether methods that must agree do: the same scores for `shared`, the same rankings for both pairs."""
    checks = []
    difference = largest_difference(question, "baseline", "shared")
    if difference is not None and difference <= 1e-6:
        checks.append("As expected, shared gives every candidate the same score as baseline.")
    elif difference is not None:
        checks.append(f"Scores of shared differ from those of baseline by up to {difference:.2g}.")
    for method, other in (("alsatian", "shift"), ("shared", "baseline")):
        is_alike = ranks_alike(question, method, other)
        if is_alike:
            checks.append(f"As expected, {method} gives the same ranking as {other}.")
        elif is_alike is not None:
            checks.append(f"Unexpectedly, {method} ranks candidates differently from {other}.")
    return checks


def _speed_ups(run: Run) -> DataTable:
    """Return a row per question: the speed-up and the time of each method."""
    methods = _methods_of(run)
    rows = []
    for question in run.questions:
        values: dict[str, Any] = {"question": question.title, "against": question.slowest.method}
        chips: dict[str, tuple[Chip, ...]] = {}
        for runs in question.methods:
            values[runs.method] = question.speed_up(runs)
            values[f"{runs.method}_s"] = runs.median_s
            if runs.is_noisy:
                chips[runs.method] = (("noisy", "warn"),)
        rows.append(Row(values, chips))
    columns = [
        Column("question", "question", "name"),
        Column("against", "compared with", "name", "the method whose time speed-ups are relative to"),
        *(Column(method, method, "ratio", f"speed-up of {method}") for method in methods),
        *(Column(f"{method}_s", f"{method}, time", "seconds") for method in methods),
    ]
    caption = "Speed-up of each search method"
    return DataTable("speed_ups", caption, tuple(columns), tuple(rows), num_shown=MAX_SPEED_UPS_SHOWN)


def _overview(run: Run) -> Markup:
    """Draw all questions on one scale: a dot per method at its median, a line over its runs."""
    methods = _methods_of(run)
    rows = [
        DotRow(
            question.title,
            {runs.method: (runs.median_s, min(runs.totals_s), max(runs.totals_s)) for runs in question.methods},
        )
        for question in run.questions
    ]
    title = f"Median time of {plural(len(methods), 'search method')} on {plural(len(rows), 'question')}, log scale"
    axis = "median time; lines span the fastest to the slowest run (log scale)"
    return Markup(dot_rows(rows, methods, title, axis, seconds_text))


def _methods_of(run: Run) -> list[str]:
    return list(dict.fromkeys(runs.method for question in run.questions for runs in question.methods))
