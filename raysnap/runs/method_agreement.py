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
    """Return how much lower the reference method scores this method's winner than its own; None if unknown."""
    scores = question.reference.median_run.scores
    runs = question.method(method)
    if runs is None or not scores or not runs.median_run.ranking:
        return None
    score = scores.get(min(runs.median_run.ranking, key=lambda ranked: ranked.rank).snapshot)
    return None if score is None else max(scores.values()) - score
