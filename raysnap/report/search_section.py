"""What a report says of timed searches: who won, how fast each method is against the others and the bound."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from raysnap.config.choices import Role
from raysnap.humanize import count_text, plural, ratio_text, seconds_text, seconds_unit
from raysnap.report import bar_charts, line_charts
from raysnap.report import dot_charts as charts
from raysnap.report import headlines as summary
from raysnap.report.tables import Column, DataTable, Row, without_empty
from raysnap.runs.proxy_validation import Transfer, transfer_of
from raysnap.runs.questions import MethodRuns, Question, short_dataset
from raysnap.runs.run import Run
from raysnap.runs.search_rows import RankingRow, RungRow
from raysnap.runs.store_contents import Holdings

MAX_RANKED_AT_ONCE = 12
MAX_OPEN_QUESTIONS = 6

PHASES = (
    bar_charts.Segment("start_workers", "start of workers", "phase-start"),
    bar_charts.Segment("plan", "plan", "phase-plan"),
    bar_charts.Segment("load_blocks", "load blocks", "phase-load"),
    bar_charts.Segment("decode", "decode", "phase-decode"),
    bar_charts.Segment("inference", "inference", "phase-inference"),
    bar_charts.Segment("proxy", "proxy", "phase-proxy"),
    bar_charts.Segment("rest", "rest", "phase-rest"),
)
UNSPLIT = bar_charts.Segment("rest", "not split by phase", "phase-rest")
WHOLE_RUNG = bar_charts.Segment("rest", "the whole rung", "phase-inference")


def search_section(run: Run, holdings: Holdings) -> dict[str, Any]:
    """Everything that the page shows of the run's searches."""
    questions = [_question(number, question) for number, question in enumerate(run.questions, start=1)]
    return {
        "rankings": _rankings(run, holdings),
        "questions": questions,
        "num_open": MAX_OPEN_QUESTIONS if len(questions) > MAX_OPEN_QUESTIONS else len(questions),
        "speed_ups": _speed_ups(run) if len(questions) > 1 else None,
        "overview": _overview(run) if len(questions) > 1 else None,
    }


def _rankings(run: Run, holdings: Holdings) -> list[dict[str, Any]]:
    """Each ranking once, with the questions that it answers: how the cache was filled does not change it."""
    by_answer: dict[tuple, list[Question]] = {}
    for question in run.questions:
        answers = tuple(
            (one.method, one.median_run.ranking) for one in sorted(question.methods, key=lambda one: one.method)
        )
        by_answer.setdefault((question.dataset, question.proxy, answers), []).append(question)
    return [_ranking(number, alike, run, holdings) for number, alike in enumerate(by_answer.values(), start=1)]


def _ranking(number: int, alike: list[Question], run: Run, holdings: Holdings) -> dict[str, Any]:
    question = alike[0]
    transfer = transfer_of(question, run, holdings)
    return {
        "titles": [one.title for one in alike],
        "proxy": question.proxy,
        "reference": question.reference.method,
        "num_others": len(question.methods) - 1,
        "table": _ranking_table(number, question, run),
        "static_baseline": question.reference.median_run.static_baseline,
        "is_tied": any(one.is_tied for one in question.reference.median_run.ranking[1:]),
        "transfer": transfer,
        "transfer_chart": Markup(_transfer_chart(question, transfer)) if transfer else None,
    }


def _question(number: int, question: Question) -> dict[str, Any]:
    return {
        "title": question.title,
        "breakdown": Markup(_breakdown(question)),
        "has_bound": any(one.median_run.bound_s for one in question.methods),
        "timings": _timings(number, question),
        "rungs": _rungs(question),
        "rungs_table": _rungs_table(number, question),
        "num_repeats": max(len(one.searches) for one in question.methods),
        "remarks": _remarks(question),
    }


def _ranking_table(number: int, question: Question, run: Run) -> DataTable:
    ranking = sorted(question.reference.median_run.ranking, key=lambda one: one.rank)
    others = [one for one in question.methods if one is not question.reference]
    places = {one.method: {ranked.snapshot: ranked.rank for ranked in one.median_run.ranking} for one in others}
    scores = [one.score for one in ranking if one.score is not None]
    low = min([0.0, *scores])
    span = max([1.0 if low == 0 else 0.0, *scores]) - low
    is_tied = any(one.is_tied for one in ranking[1:])
    rows = []
    for one in ranking:
        share = 0.0 if one.score is None or not span else (one.score - low) / span
        rows.append(_ranked_row(one, run, share, is_tied, places))
    columns = [
        Column("rank", "rank", "count"),
        Column("score", f"{question.proxy} score", "score"),
        Column("name", "snapshot", "name"),
        Column("dataset", "fine-tuned on", "name"),
        Column("retrain_index", "r", "count", "retrain index: blocks retrained below the head"),
        *(Column(f"rank_{method}", method, "count", f"rank by {method}") for method in places),
        Column("snapshot", "id", is_on_page=False),
    ]
    return DataTable(
        f"ranking_{number:02d}",
        f"Candidates for {question.title}, ranked by {question.reference.method} with {question.proxy}",
        without_empty(columns, rows),
        tuple(rows),
        num_shown=MAX_RANKED_AT_ONCE,
    )


def _ranked_row(one: RankingRow, run: Run, share: float, is_tied: bool, places: dict[str, dict[str, int]]) -> Row:
    trial = run.trial_of.get(one.snapshot)
    values = {
        "rank": one.rank,
        "score": one.score,
        "name": one.name,
        "dataset": short_dataset(trial.dataset) if trial and trial.dataset else None,
        "retrain_index": trial.retrain_index if trial else None,
        "snapshot": one.snapshot,
    }
    chips = {"name": (("tied", ""),)} if one.is_tied and is_tied else {}
    if trial and trial.role == Role.BASE:
        chips["dataset"] = (("base", ""),)
    ranks = {f"rank_{method}": ranked.get(one.snapshot) for method, ranked in places.items()}
    return Row(values | ranks, chips, {"score": share}, css="first" if one.rank == 1 else "")


def _breakdown(question: Question) -> str:
    bars = [
        bar_charts.StackedBar(
            one.method,
            one.median_run.phases_s,
            tuple(one.totals_s) if len(one.searches) > 1 else (),
            "" if one is question.slowest else f"{ratio_text(question.speed_up(one))} faster",
            one.median_run.bound_s,
        )
        for one in question.methods
    ]
    phases = PHASES if any(one.median_run.has_phases for one in question.methods) else (UNSPLIT,)
    title = f"Time of each search method on {question.title} by phase, in seconds"
    return bar_charts.stacked_bars(
        bars, phases, title, "time of one search, the median run", seconds_text, seconds_unit
    )


def _timings(number: int, question: Question) -> DataTable:
    rows = tuple(_timing_row(question, one) for one in question.methods)
    columns = [
        Column("method", "method", "name"),
        Column("median_s", "median", "seconds"),
        Column("num_runs", "runs", "count"),
        Column("precision", "precision", is_on_page=False),
        Column("least_s", "fastest run", "seconds", is_on_page=False),
        Column("most_s", "slowest run", "seconds", is_on_page=False),
        Column("speed_up", "speed-up", "ratio"),
        Column("bound_s", "bound", "seconds", "the least time that this work takes on this machine"),
        Column("over_bound", "over bound", "ratio", "time over its bound"),
        Column("block_item_passes", "block-item passes", "count", "how often a block ran on an item"),
        Column("flops", "operations", "flops"),
        Column("block_bytes_read", "blocks read", "bytes"),
        Column("disk_bytes_read", "from disk", "bytes", "bytes that came from the disk and not from memory"),
        Column("images_decoded", "images decoded", "count", is_on_page=False),
        Column("peak_activation_bytes", "peak activations", "bytes"),
        Column("peak_memory_bytes", "peak memory", "bytes"),
        Column("regret", "regret", "score", f"how much lower {question.reference.method} scores this method's winner"),
    ]
    caption = f"Search methods on {question.title}, slowest first"
    return DataTable(f"timings_{number:02d}", caption, without_empty(columns, rows), rows)


def _timing_row(question: Question, one: MethodRuns) -> Row:
    run = one.median_run
    bound_s = run.bound_s
    values = {
        "method": one.method,
        "median_s": one.median_s,
        "num_runs": len(one.searches),
        "precision": run.computed_precision,
        "least_s": min(one.totals_s),
        "most_s": max(one.totals_s),
        "speed_up": question.speed_up(one),
        "bound_s": bound_s,
        "over_bound": one.median_s / bound_s if bound_s else None,
        "block_item_passes": run.work.get("block_item_passes"),
        "flops": run.work.get("flops"),
        "block_bytes_read": run.work.get("block_bytes_read"),
        "disk_bytes_read": run.read_bytes,
        "images_decoded": run.work.get("images_decoded"),
        "peak_activation_bytes": run.peak_activation_bytes,
        "peak_memory_bytes": run.peak_memory_bytes,
        "regret": summary.regret(question, one.method) if len(question.methods) > 1 else None,
    }
    chips = {"method": (("noisy", "warn"),)} if one.is_noisy else {}
    is_fastest = one is question.fastest and len(question.methods) > 1
    return Row(values, chips, hints={"method": "; ".join(one.noise)}, css="first" if is_fastest else "")


def _told_rungs(question: Question) -> list[tuple[MethodRuns, int, RungRow]]:
    with_rungs = [one for one in question.methods if len(one.median_run.rungs) > 1]
    return [(one, index, rung) for one in with_rungs for index, rung in enumerate(one.median_run.rungs, start=1)]


def _rungs(question: Question) -> Markup | None:
    told = _told_rungs(question)
    bars = [
        bar_charts.StackedBar(
            f"{one.method} {index}",
            rung.phases_s,
            note=f"{count_text(rung.num_candidates)} × {count_text(rung.num_train)} items"
            + (f", {count_text(rung.num_kept)} stay" if rung.num_kept is not None else ""),
        )
        for one, index, rung in told
    ]
    if not bars:
        return None
    phases = PHASES if any(rung.has_phases for _, _, rung in told) else (WHOLE_RUNG,)
    title = f"Time of each rung on {question.title}, in seconds"
    return Markup(bar_charts.stacked_bars(bars, phases, title, "time of one rung", seconds_text, seconds_unit))


def _rungs_table(number: int, question: Question) -> DataTable | None:
    rows = tuple(
        Row(
            {"method": one.method, "rung": index, "num_candidates": rung.num_candidates}
            | {"num_train": rung.num_train, "num_test": rung.num_test, "total_s": rung.total_s}
            | {"num_kept": rung.num_kept, "num_tied": rung.num_tied, **rung.work}
            | {f"{phase}_s": value for phase, value in rung.phases_s.items() if rung.has_phases}
        )
        for one, index, rung in _told_rungs(question)
    )
    columns = [
        Column("method", "method", "name"),
        Column("rung", "rung", "count"),
        Column("num_candidates", "candidates", "count"),
        Column("num_train", "train items", "count"),
        Column("num_test", "test items", "count"),
        Column("num_kept", "stay", "count", "candidates that stay in the contest"),
        Column("num_tied", "of them tied", "count", "who stay because they can't be told from the last of the others"),
        Column("total_s", "time", "seconds"),
        *(Column(f"{phase.key}_s", phase.name, "seconds") for phase in PHASES),
        Column("block_item_passes", "block-item passes", "count"),
        Column("flops", "operations", "flops"),
        Column("block_bytes_read", "blocks read", "bytes"),
    ]
    caption = f"Rungs on {question.title}"
    return DataTable(f"rungs_{number:02d}", caption, without_empty(columns, rows), rows) if rows else None


def _remarks(question: Question) -> list[str]:
    """The laws of the methods, checked on this run, and what makes its times doubtful."""
    told = []
    difference = summary.largest_difference(question, "baseline", "shared")
    if difference is not None:
        same = "the score" if difference <= 1e-6 else f"a score within {difference:.2g} of the one"
        told.append(f"shared gives every candidate {same} that baseline gives.")
    for one, other in (("shift", "alsatian"), ("baseline", "shared")):
        matches = summary.ranking_matches(question, one, other)
        if matches is not None:
            told.append(f"{other} {'ranks as' if matches else 'does not rank as'} {one} does.")
    for one in question.methods:
        if one.is_noisy:
            told.append(f"Take the times of {one.method} with care: {'; '.join(one.noise)}.")
    return told


def _speed_ups(run: Run) -> DataTable:
    """A row per question: each method's time against the reference of speed-ups."""
    methods = list(dict.fromkeys(one.method for question in run.questions for one in question.methods))
    rows = []
    for question in run.questions:
        values: dict[str, Any] = {"question": question.title, "against": question.slowest.method}
        chips = {}
        for one in question.methods:
            values[one.method] = question.speed_up(one)
            values[f"{one.method}_s"] = one.median_s
            if one.is_noisy:
                chips[one.method] = (("noisy", "warn"),)
        rows.append(Row(values, chips))
    columns = [
        Column("question", "asked", "name"),
        Column("against", "against", "name", "what speed-ups are measured against"),
        *(Column(method, method, "ratio", f"speed-up of {method}") for method in methods),
        *(Column(f"{method}_s", f"{method}, time", "seconds") for method in methods),
    ]
    return DataTable("speed_ups", "Speed-up of each search method", tuple(columns), tuple(rows), num_shown=40)


def _overview(run: Run) -> Markup:
    """All questions on one scale: a dot per method at its median, a line over its runs."""
    methods = list(dict.fromkeys(one.method for question in run.questions for one in question.methods))
    rows = [
        charts.DotRow(
            question.title,
            {one.method: (one.median_s, min(one.totals_s), max(one.totals_s)) for one in question.methods},
        )
        for question in run.questions
    ]
    title = f"Median time of {plural(len(methods), 'search method')} on {plural(len(rows), 'question')}, log scale"
    return Markup(
        charts.dot_rows(rows, methods, title, "median time, from the fastest to the slowest run", seconds_text)
    )


def _transfer_chart(question: Question, transfer: Transfer) -> str:
    hints = [(x, y, f"{name}: {question.proxy} {x:.3f}, fine-tuned {y:.3f}") for name, x, y in transfer.points]
    xs, ys = [x for _, x, _ in transfer.points], [y for _, _, y in transfer.points]
    return charts.scatter(
        hints,
        f"{question.proxy} score against fine-tuned accuracy on {question.title}",
        f"{question.proxy} score",
        f"{transfer.metric} after fine-tuning",
        line_charts.shared_range(xs),
        line_charts.shared_range(ys),
    )
