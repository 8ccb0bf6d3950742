"""Scores that are not a sum over items: the confusion matrix, and what follows from it."""

from __future__ import annotations

import torch
from torch import Tensor


def count_confusion(labels_N: Tensor, predicted_N: Tensor, num_classes: int) -> Tensor:
    """Count items of each class (rows) predicted as each class (columns), int64 `[num_classes, num_classes]`."""
    pairs_N = labels_N * num_classes + predicted_N
    return torch.bincount(pairs_N, minlength=num_classes**2).view(num_classes, num_classes)


def macro_f1(confusion_CC: Tensor) -> float:
    """Return the mean F1 over the classes that occur or are predicted, as torchmetrics and scikit-learn define it."""
    confusion_CC = confusion_CC.to(torch.float64)
    hits_C = confusion_CC.diagonal()
    seen_C = confusion_CC.sum(0) + confusion_CC.sum(1)
    is_seen_C = seen_C > 0
    return (2 * hits_C[is_seen_C] / seen_C[is_seen_C]).mean().item()
