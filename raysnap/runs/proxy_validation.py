"""Whether the proxy told the truth: its scores beside the accuracy that candidates reached once fine-tuned."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import stats

from raysnap.runs.questions import Question, short_dataset
from raysnap.runs.run import Run
from raysnap.runs.store_contents import Holdings


@dataclass(frozen=True)
class Transfer:
    """Candidates whose fine-tuned accuracy on the searched dataset is known.

    Attributes:
        points: (name, proxy score, accuracy) of each.
        metric: which accuracy.
        tau: Kendall's tau-b between the two; None where one of them is constant.
        p_value: the chance of a tau as far from 0 without any relation.
        regret: the best accuracy less that of the candidate the proxy put first.
    """

    points: tuple[tuple[str, float, float], ...]
    metric: str
    tau: float | None
    p_value: float | None
    regret: float


def transfer_of(question: Question, run: Run, holdings: Holdings) -> Transfer | None:
    """What is known of the question's candidates as starts: of three at least, else None.

    Known are fine-tunes of this run or of its store that began from a candidate, on the dataset that was asked about.
    """
    ranking = question.reference.median_run.ranking
    scores = {one.snapshot: (one.name, one.score) for one in ranking if one.score is not None}
    for metric in ("test_accuracy", "val_accuracy"):
        reached: dict[str, float] = {}
        for trial in run.done_trials:
            if trial.base in scores and short_dataset(trial.dataset) == short_dataset(question.dataset):
                _keep_best(reached, trial.base, trial.metrics.get(metric))
        for base, dataset, metrics in holdings.finetunes:
            if base in scores and dataset == short_dataset(question.dataset):
                _keep_best(reached, base, metrics.get(metric))
        points = tuple((*scores[base], accuracy) for base, accuracy in reached.items())
        if len(points) >= 3:
            return _transfer(points, metric.replace("_", " "))
    return None


def _keep_best(reached: dict[str, float], base: str, accuracy: float | None) -> None:
    if accuracy is not None:
        reached[base] = max(accuracy, reached.get(base, -math.inf))


def _transfer(points: tuple[tuple[str, float, float], ...], metric: str) -> Transfer:
    scores, accuracies = [score for _, score, _ in points], [accuracy for _, _, accuracy in points]
    tau = p_value = None
    if len(set(scores)) > 1 and len(set(accuracies)) > 1:
        found = stats.kendalltau(scores, accuracies)
        tau, p_value = float(found.statistic), float(found.pvalue)
    chosen = max(points, key=lambda point: point[1])
    return Transfer(points, metric, tau, p_value, max(accuracies) - chosen[2])
