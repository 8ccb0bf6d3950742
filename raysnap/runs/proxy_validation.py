"""Compare a proxy's scores with the accuracy that candidates reached once fine-tuned."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import stats

from raysnap.runs.questions import Question, short_dataset
from raysnap.runs.run import Run
from raysnap.runs.store_contents import StoreContents


@dataclass(frozen=True)
class ProxyValidation:
    """Candidates whose fine-tuned accuracy on the searched dataset is known.

    Attributes:
        points: (name, proxy score, accuracy) of each.
        metric: which accuracy.
        tau: Kendall's tau-b between the two; None if one of them is constant.
        p_value: the probability of a tau as far from 0 if the two were unrelated.
        regret: the best accuracy minus that of the candidate with the highest score.
    """

    points: tuple[tuple[str, float, float], ...]
    metric: str
    tau: float | None
    p_value: float | None
    regret: float


def validate_proxy(question: Question, run: Run, contents: StoreContents) -> ProxyValidation | None:
    """Compare the scores of a question's candidates with their fine-tuned accuracy; None if fewer than 3 are known.

    Only scores of the last rung are compared, as those of others rest on other numbers of items. The accuracy of a
    candidate is known from fine-tunes of this run or of its store that started from it, on the
    question's dataset.
    """
    ranking = question.reference.median_run.ranking
    best = min(ranking, key=lambda ranked: ranked.rank, default=None)
    scores = {
        ranked.snapshot: (ranked.name, ranked.score)
        for ranked in ranking
        if ranked.score is not None and best is not None and ranked.rung == best.rung
    }
    for metric in ("test_accuracy", "val_accuracy"):
        reached: dict[str, float] = {}
        for trial in run.done_trials:
            if trial.base in scores and short_dataset(trial.dataset) == short_dataset(question.dataset):
                _keep_best(reached, trial.base, trial.metrics.get(metric))
        for base, dataset, metrics in contents.finetunes:
            if base in scores and dataset == short_dataset(question.dataset):
                _keep_best(reached, base, metrics.get(metric))
        points = tuple((*scores[base], accuracy) for base, accuracy in reached.items())
        if len(points) >= 3:
            return _validate(points, metric.replace("_", " "))
    return None


def _keep_best(reached: dict[str, float], base: str | None, accuracy: float | None) -> None:
    if base is not None and accuracy is not None:
        reached[base] = max(accuracy, reached.get(base, -math.inf))


def _validate(points: tuple[tuple[str, float, float], ...], metric: str) -> ProxyValidation:
    scores, accuracies = [score for _, score, _ in points], [accuracy for _, _, accuracy in points]
    tau = p_value = None
    if len(set(scores)) > 1 and len(set(accuracies)) > 1:
        found = stats.kendalltau(scores, accuracies)
        tau, p_value = float(found.statistic), float(found.pvalue)
    chosen = max(points, key=lambda point: point[1])
    return ProxyValidation(points, metric, tau, p_value, max(accuracies) - chosen[2])
