"""How far two search methods agree on one question: their rankings, their scores, their winners."""

from __future__ import annotations

from raysnap.runs.questions import Question
from raysnap.runs.search_rows import RankingRow


def best_of(question: Question) -> RankingRow | None:
    """Return the snapshot that the reference method ranks first; None if it ranked nothing."""
    return min(question.reference.median_run.ranking, key=lambda ranked: ranked.rank, default=None)


def ranks_alike(question: Question, first: str, second: str) -> bool | None:
    """Return whether two methods rank all candidates alike; None if one of them did not run."""
    runs, others = question.method(first), question.method(second)
    if runs is None or others is None:
        return None
    rankings = [[ranked.snapshot for ranked in each.median_run.ranking] for each in (runs, others)]
    return rankings[0] == rankings[1]


def largest_difference(question: Question, first: str, second: str) -> float | None:
    """Return the largest difference between the scores of two methods for one candidate; None if not comparable."""
    runs, others = question.method(first), question.method(second)
    if runs is None or others is None:
        return None
    scores, other_scores = runs.median_run.scores, others.median_run.scores
    return max((abs(scores[key] - other_scores[key]) for key in scores.keys() & other_scores.keys()), default=None)


def regret(question: Question, method: str) -> float | None:
    """Return how much lower the reference method scores this method's winner than its own.

    None where that is unknown, or where the reference scored the two in different rungs, on other numbers of items.
    """
    runs, best = question.method(method), best_of(question)
    if runs is None or best is None or best.score is None or not runs.median_run.ranking:
        return None
    winner = min(runs.median_run.ranking, key=lambda ranked: ranked.rank).snapshot
    ours = next((ranked for ranked in question.reference.median_run.ranking if ranked.snapshot == winner), None)
    if ours is None or ours.score is None or ours.rung != best.rung:
        return None
    same = [
        line.score
        for line in question.reference.median_run.ranking
        if line.rung == best.rung and line.score is not None
    ]
    return max(same) - ours.score
