"""Evaluate a model on a split: its metrics and its predictions, which are kept as files of a run."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from raysnap.atomic import replacing
from raysnap.config.train import TrainConfig
from raysnap.datasets.dataset import Dataset
from raysnap.models.numerics import Numerics
from raysnap.store.preprocessing import AnyPreprocessing
from raysnap.training.feeds import Feed, FrozenPrefix, LabelledItems
from raysnap.training.steps import num_outputs
from raysnap.training.terms import Terms
from raysnap.training.trial import Trial
from raysnap.training.worker import ALONE, Worker

Scores = dict[str, float]

FILE_NAME = "predictions.json"
FOLDER_NAME = "predictions"


@dataclass(frozen=True)
class Predictions:
    """The class that a model predicts for each item of a split, and the probability it gives to it, `[num_items]`."""

    classes: list[int]
    confidences: list[float]


def predictions_of(outputs: list[Tensor], worker: Worker) -> Predictions | None:
    """Gather the workers' predictions of their parts of a split, in the order of the items."""
    parts = worker.gather(torch.cat(outputs, dim=1).cpu() if outputs else None)
    known = [part for part in parts if part is not None]
    if not known:
        return None
    confidences, classes = torch.cat(known, dim=1)
    return Predictions(classes.long().tolist(), confidences.tolist())


def evaluate(model: nn.Sequential, items: LabelledItems, preprocessing: AnyPreprocessing, batch_size: int) -> Scores:
    """Return mean loss, accuracy and top-5 accuracy of the model in eval mode; restore each block's mode afterwards."""
    numerics = Numerics(next(model.parameters()).device)
    feed = FrozenPrefix(model[:0], preprocessing, numerics).feed(items)
    return evaluate_with(model, feed, Terms(TrainConfig(batch_size=batch_size), numerics, ALONE, 0, 0))


def evaluate_with(blocks: nn.Sequential, feed: Feed, terms: Terms, *, into: list[Tensor] | None = None) -> Scores:
    """Return the scores of a split; append this worker's confidences and classes, float64 `[2, n]`, to `into`."""
    numerics, worker = terms.numerics, terms.worker
    modes = [block.training for block in blocks]
    blocks.eval()
    num_items = len(feed.labels)
    sums = torch.zeros(3, dtype=torch.float64, device=numerics.device)
    num_classes = num_outputs(blocks)
    confusion = torch.zeros((num_classes, num_classes), dtype=torch.int64, device=numerics.device)
    with torch.inference_mode():
        for positions in (
            torch.arange(num_items).tensor_split(worker.world_size)[worker.rank].split(terms.config.batch_size)
        ):
            if not len(positions):
                continue
            labels = feed.labels[positions.to(numerics.device)]
            inputs = feed.inputs(positions)
            with numerics.autocast():
                logits = blocks(inputs).float()
            top_classes = logits.topk(min(5, num_classes), dim=1).indices
            top = top_classes == labels[:, None]
            sums[0] += functional.cross_entropy(logits, labels, reduction="sum")
            sums[1] += top[:, 0].sum()
            sums[2] += top.any(dim=1).sum()
            confusion += count_confusion(labels, top_classes[:, 0], num_classes)
            if into is not None:
                confidences = logits.softmax(dim=1).amax(dim=1)
                into.append(torch.stack((confidences.double(), top_classes[:, 0].double())))
    for block, mode in zip(blocks, modes, strict=True):
        block.train(mode)
    loss, accuracy, top5_accuracy = (worker.total(sums) / num_items).tolist()
    f1 = macro_f1(worker.total(confusion))
    return {"loss": loss, "accuracy": accuracy, "top5_accuracy": top5_accuracy, "macro_f1": f1}


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


def write_predictions(
    directory: Path, trial: Trial, dataset: Dataset, items: LabelledItems, predictions: Predictions
) -> None:
    """Write the predictions of the dataset's test items into the folder of a finished trial."""
    document = {
        "trial": trial.id,
        "dataset": trial.dataset,
        "root": str(dataset.root.resolve()),
        "classes": dataset.classes,
        "paths": items.names,
        "labels": items.labels.tolist(),
        "predicted": predictions.classes,
        "confidence": predictions.confidences,
    }
    (directory / FILE_NAME).write_text(json.dumps(document), encoding="utf-8")


def keep_predictions(trial_dir: Path, run_dir: Path, trial_id: str) -> str | None:
    """Copy a finished trial's predictions into the run directory; return their path in it, None without any."""
    source = trial_dir / FILE_NAME
    if not source.is_file():
        return None
    (run_dir / FOLDER_NAME).mkdir(exist_ok=True)
    target = run_dir / FOLDER_NAME / f"{trial_id}.json"
    with source.open("rb") as original, replacing(target) as copy:
        shutil.copyfileobj(original, copy)
    return str(target.relative_to(run_dir))
