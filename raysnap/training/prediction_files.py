"""A finished trial's prediction for each test item: a file beside its weights, then one in the run directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from raysnap.atomic import replacing
from raysnap.datasets.dataset import Dataset
from raysnap.training.evaluation import Predictions
from raysnap.training.feeds import LabelledItems
from raysnap.training.trial import Trial

FILE_NAME = "predictions.json"
FOLDER_NAME = "predictions"


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
