"""What a report shows of rankings: which snapshot to start from, and whether the proxy predicts fine-tuned accuracy."""

from __future__ import annotations

import shlex
from typing import Any

from markupsafe import Markup

from raysnap.config.choices import Role
from raysnap.humanize import is_known, plural, score_text
from raysnap.models.architecture import shown as architecture_shown
from raysnap.report.charts.dots import scatter
from raysnap.report.charts.lines import shared_range
from raysnap.report.tables import Chip, Column, DataTable, Row, without_empty
from raysnap.runs.json_fields import mapping, numbers, sequence, whole
from raysnap.runs.method_agreement import best_of
from raysnap.runs.proxy_validation import ProxyValidation, validate_proxy
from raysnap.runs.questions import MethodRuns, Question, gain_text, short_dataset
from raysnap.runs.run import Run
from raysnap.runs.search_rows import RankingRow
from raysnap.runs.store_contents import StoreContents

MAX_RANKED_SHOWN = 12


def ranking_section(run: Run, contents: StoreContents) -> list[dict[str, Any]]:
    """Return each distinct ranking once, with all questions that it answers.

    Questions that differ only in what changes no ranking, such as the state of the cache, share one.
    """
    by_answer: dict[tuple[Any, ...], list[Question]] = {}
    for question in run.questions:
        methods = sorted(question.methods, key=lambda runs: runs.method)
        answers = tuple((runs.method, runs.median_run.ranking) for runs in methods)
        by_answer.setdefault((question.dataset, question.proxy, answers), []).append(question)
    return [_ranking(number, alike, run, contents) for number, alike in enumerate(by_answer.values(), start=1)]


def _ranking(number: int, alike: list[Question], run: Run, contents: StoreContents) -> dict[str, Any]:
    question = alike[0]
    validation = validate_proxy(question, run, contents)
    return {
        "titles": [same.title for same in alike],
        "proxy": question.proxy,
        "reference": question.reference.method,
        "num_others": len(_other_rankings(question)),
        "alike": [one.method for one in _others(question) if one not in _other_rankings(question)],
        "table": _ranking_table(number, question, run),
        "static_baseline": question.reference.median_run.static_baseline,
        "is_tied": any(ranked.is_tied for ranked in question.reference.median_run.ranking[1:]),
        "validation": validation,
        "inputs": _inputs_text(question),
        "gain": _gain_text(question),
        "next_lines": _next_lines(question, run),
        "validation_chart": Markup(_validation_chart(question, validation)) if validation else None,
    }


def _inputs_text(question: Question) -> str:
    """Say how large the items are that candidates see; nothing where that was not kept."""
    groups = [mapping(one) for one in sequence(question.reference.median_run.search.get("inputs"))]
    known = [(whole(one.get("image_size")), whole(one.get("num_candidates")), one.get("mean")) for one in groups]
    texts = [
        f"{size}\u00a0{'px' if mean else 'tokens'}"
        + (f" ({plural(count or 0, 'candidate')})" if len(known) > 1 else "")
        for size, count, mean in known
    ]
    ways = f"in {len(texts)} ways: " if len(texts) > 1 else "at "
    return f" Candidates see items {ways}{', '.join(texts)}." if texts else ""


def _gain_text(question: Question) -> str:
    """Say what the first gains over the choice without a search, and how sure that is; nothing where it isn't known."""
    gain = numbers(question.reference.median_run.search.get("gain"))
    if not {"value", "low", "high", "num_scored"} <= gain.keys():
        return ""
    return f" {gain_text(gain)}."


def _next_lines(question: Question, run: Run) -> str:
    """Return the commands that go on from one's own search; a benchmark's rankings have none."""
    best, data = best_of(question), run.config.get("data")
    if best is None or not isinstance(data, str):
        return ""
    store = f"--store {shlex.quote(str(run.config['store']))}"
    return (
        f"raysnap finetune --data {shlex.quote(data)} {store}\n"
        f"raysnap store export {best.snapshot[:12]} {store} --to {best.snapshot[:12]}.safetensors"
    )


def _others(question: Question) -> list[MethodRuns]:
    """Return the methods that the ranking shown is not by."""
    return [runs for runs in question.methods if runs is not question.reference]


def _other_rankings(question: Question) -> list[MethodRuns]:
    """Return the methods that rank otherwise than the ranking shown, or not the same candidates."""
    shown = {one.snapshot: one.rank for one in question.reference.median_run.ranking}
    return [runs for runs in _others(question) if {one.snapshot: one.rank for one in runs.median_run.ranking} != shown]


def _ranking_table(number: int, question: Question, run: Run) -> DataTable:
    ranking = sorted(question.reference.median_run.ranking, key=lambda ranked: ranked.rank)
    others = _other_rankings(question)
    ranks = {runs.method: {ranked.snapshot: ranked.rank for ranked in runs.median_run.ranking} for runs in others}
    first_rung = ranking[0].rung if ranking else None
    scores = [ranked.score for ranked in ranking if ranked.score is not None and ranked.rung == first_rung]
    low = min([0.0, *scores])
    span = max([1.0 if low == 0 else 0.0, *scores]) - low
    has_ties = any(ranked.is_tied for ranked in ranking[1:])
    rows = []
    for ranked in ranking:
        is_compared = ranked.score is not None and ranked.rung == first_rung and span
        share = (ranked.score - low) / span if is_compared and ranked.score is not None else None
        rows.append(_ranking_row(ranked, run, share, has_ties, ranks))
    columns = [
        Column("rank", "rank", "count"),
        Column("score", f"{question.proxy} score", "score", "bars compare scores on the same items only"),
        Column("interval", "95 % interval", "span", "by the luck of the items that the score rests on"),
        Column("num_scored", "items", "count", "items that the score rests on; other numbers can't be compared"),
        Column("standing", "standing", "score", "expected place among starts, by records of other datasets"),
        Column("name", "snapshot", "name"),
        Column(
            "architecture", "architecture", "name", is_on_page=len({row.values["architecture"] for row in rows}) > 1
        ),
        Column("dataset", "fine-tuned on", "name"),
        Column("retrain_index", "r", "count", "retrain index r: number of blocks retrained below the head"),
        *(Column(f"rank_{method}", method, "count", f"rank by {method}") for method in ranks),
        Column("snapshot", "id", is_on_page=False),
    ]
    return DataTable(
        f"ranking_{number:02d}",
        f"Candidates for {question.title}, ranked by {question.reference.method} with {question.proxy}",
        without_empty(columns, rows),
        tuple(rows),
        num_shown=MAX_RANKED_SHOWN,
    )


def _ranking_row(
    ranked: RankingRow, run: Run, share: float | None, has_ties: bool, ranks: dict[str, dict[str, int]]
) -> Row:
    """Return a line of a ranking; a score of another rung than the first's gets no bar."""
    trial = run.trial_of.get(ranked.snapshot)
    values = {
        "rank": ranked.rank,
        "score": ranked.score,
        "interval": f"{score_text(ranked.low)} to {score_text(ranked.high)}" if is_known(ranked.low) else None,
        "num_scored": ranked.num_scored or ranked.num_test,
        "standing": ranked.standing,
        "name": ranked.name,
        "architecture": architecture_shown(ranked.architecture) if ranked.architecture else None,
        "dataset": short_dataset(trial.dataset) if trial and trial.dataset else ranked.dataset,
        "retrain_index": trial.retrain_index if trial else ranked.retrain_index,
        "snapshot": ranked.snapshot,
    }
    chips: dict[str, tuple[Chip, ...]] = {"name": (("tied", ""),)} if ranked.is_tied and has_ties else {}
    if trial and trial.role == Role.BASE:
        chips["dataset"] = (("base", ""),)
    other_ranks = {f"rank_{method}": rank_of.get(ranked.snapshot) for method, rank_of in ranks.items()}
    bars = {} if share is None else {"score": share}
    return Row(values | other_ranks, chips, bars, css="first" if ranked.rank == 1 else "")


def _validation_chart(question: Question, validation: ProxyValidation) -> str:
    points = validation.points
    hints = [(x, y, f"{name}: {question.proxy} {x:.3f}, fine-tuned {y:.3f}") for name, x, y in points]
    return scatter(
        hints,
        f"{question.proxy} score against fine-tuned accuracy on {question.title}",
        f"{question.proxy} score",
        f"{validation.metric} after fine-tuning",
        shared_range([x for _, x, _ in points]),
        shared_range([y for _, _, y in points]),
    )
