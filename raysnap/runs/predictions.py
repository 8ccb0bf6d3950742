"""Read a trial's test predictions back: which classes are confused, and the most confident mistakes."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from raysnap.humanize import shown
from raysnap.runs.json_fields import mapping, number, sequence
from raysnap.runs.run import Run
from raysnap.runs.trial_rows import TrialRow

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """One test image: its file, its class, the predicted class, and the model's confidence (0 to 1)."""

    path: Path
    label: int
    predicted: int
    confidence: float

    @property
    def is_right(self) -> bool:
        """Whether the predicted class is the image's."""
        return self.label == self.predicted


@dataclass(frozen=True)
class Predictions:
    """One model's predictions for all test images of one dataset; classes are given by index."""

    classes: tuple[str, ...]
    items: tuple[Prediction, ...]

    @cached_property
    def confusion(self) -> Counter[tuple[int, int]]:
        """Number of images by (class, predicted class)."""
        return Counter((item.label, item.predicted) for item in self.items)

    @property
    def mistakes(self) -> list[Prediction]:
        """The wrong predictions, the most confident first."""
        wrong = [item for item in self.items if not item.is_right]
        return sorted(wrong, key=lambda item: -item.confidence)

    @property
    def accuracy(self) -> float:
        """The share of correct predictions."""
        return sum(item.is_right for item in self.items) / len(self.items)

    @property
    def macro_f1(self) -> float:
        """The mean F1 over the classes that occur as labels or predictions."""
        occurring = [index for index in range(len(self.classes)) if self._labelled[index] or self._predicted[index]]
        return sum(self.f1(index) for index in occurring) / len(occurring)

    def recall(self, index: int) -> float | None:
        """Return the share of a class's images that are predicted correctly; None if it has no image."""
        num = self._labelled[index]
        return self.confusion[index, index] / num if num else None

    def precision(self, index: int) -> float | None:
        """Return the share of the images predicted as a class that are of that class; None if there are none."""
        num = self._predicted[index]
        return self.confusion[index, index] / num if num else None

    def f1(self, index: int) -> float:
        """Return the harmonic mean of precision and recall; 0 if no image of the class is predicted correctly."""
        total = self._labelled[index] + self._predicted[index]
        return 2 * self.confusion[index, index] / total if total else 0.0

    def num_images(self, index: int) -> int:
        """Return how many test images a class has."""
        return self._labelled[index]

    @cached_property
    def _labelled(self) -> Counter[int]:
        return Counter(item.label for item in self.items)

    @cached_property
    def _predicted(self) -> Counter[int]:
        return Counter(item.predicted for item in self.items)


def read_predictions(run: Run, trial: TrialRow) -> Predictions | None:
    """Return the trial's predictions; None if it has none, or none that can be read."""
    if not trial.predictions:
        return None
    path = run.run_dir / trial.predictions
    try:
        document = mapping(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("%s: these predictions are left out of the report: %s", path, error)
        return None
    classes = tuple(shown(str(name)) for name in sequence(document.get("classes")))
    root = Path(_path_text(str(document.get("root") or ".")))
    columns = [sequence(document.get(key)) for key in ("paths", "labels", "predicted", "confidence")]
    items = [
        Prediction(root / _path_text(file), label, predicted, sure)
        for file, label, predicted, confidence in zip(*columns, strict=False)
        if isinstance(file, str) and _stays_inside(file)
        if _is_class(label, classes) and _is_class(predicted, classes) and (sure := number(confidence)) is not None
    ]
    return Predictions(classes, tuple(items)) if items else None


def _is_class(value: object, classes: tuple[str, ...]) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(classes)


def _stays_inside(file: str) -> bool:
    """Return whether the path stays below its root, so that no other file's pixels get into a page."""
    return not Path(file).is_absolute() and ".." not in Path(file).parts


def _path_text(text: str) -> str:
    """Return the text of a path with what no file's name can hold replaced."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
