"""A trial's test predictions read back: how often which class was taken for which, and the worst mistakes."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from raysnap.humanize import clean
from raysnap.runs.json_fields import mapping, number, sequence
from raysnap.runs.run import Run
from raysnap.runs.trial_rows import TrialRow

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """One test image: where it lies, its class, the class it was taken for, and how sure the model was."""

    path: Path
    label: int
    predicted: int
    confidence: float

    @property
    def is_right(self) -> bool:
        """Whether the model named the image's class."""
        return self.label == self.predicted


@dataclass(frozen=True)
class Predictions:
    """Every test image of one dataset as one model sees it."""

    classes: tuple[str, ...]
    items: tuple[Prediction, ...]

    @cached_property
    def confusion(self) -> Counter[tuple[int, int]]:
        """How many images of a class (first) were taken for a class (second)."""
        return Counter((item.label, item.predicted) for item in self.items)

    @property
    def mistakes(self) -> list[Prediction]:
        """The wrong ones, the most confident first."""
        wrong = [item for item in self.items if not item.is_right]
        return sorted(wrong, key=lambda item: -item.confidence)

    @property
    def accuracy(self) -> float:
        """The share that is right."""
        return sum(item.is_right for item in self.items) / len(self.items)

    @property
    def macro_f1(self) -> float:
        """The mean F1 over the classes that occur as labels or predictions."""
        shown = [index for index in range(len(self.classes)) if self._num_labelled(index) or self._num_predicted(index)]
        return sum(self.f1(index) for index in shown) / len(shown)

    def recall(self, index: int) -> float | None:
        """Of a class's images, the share that was recognised; None of a class without any."""
        num = self._num_labelled(index)
        return self.confusion[index, index] / num if num else None

    def precision(self, index: int) -> float | None:
        """Of the images taken for a class, the share that is of it; None where none was."""
        num = self._num_predicted(index)
        return self.confusion[index, index] / num if num else None

    def f1(self, index: int) -> float:
        """The harmonic mean of precision and recall; 0 where nothing of the class is right."""
        total = self._num_labelled(index) + self._num_predicted(index)
        return 2 * self.confusion[index, index] / total if total else 0.0

    def num_images(self, index: int) -> int:
        """How many test images a class has."""
        return self._num_labelled(index)

    def _num_labelled(self, index: int) -> int:
        return self._labelled[index]

    def _num_predicted(self, index: int) -> int:
        return self._predicted[index]

    @cached_property
    def _labelled(self) -> Counter[int]:
        return Counter(item.label for item in self.items)

    @cached_property
    def _predicted(self) -> Counter[int]:
        return Counter(item.predicted for item in self.items)


def read_predictions(run: Run, trial: TrialRow) -> Predictions | None:
    """The trial's predictions; None where it left none, or none that can be read."""
    if not trial.predictions:
        return None
    path = run.run_dir / trial.predictions
    try:
        document = mapping(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("%s: the report goes without these predictions: %s", path, error)
        return None
    classes = tuple(clean(str(name)) for name in sequence(document.get("classes")))
    root = Path(clean(str(document.get("root") or ".")))
    columns = [sequence(document.get(key)) for key in ("paths", "labels", "predicted", "confidence")]
    items = [
        Prediction(root / clean(file), label, predicted, float(confidence))
        for file, label, predicted, confidence in zip(*columns, strict=False)
        if isinstance(file, str) and _is_class(label, classes) and _is_class(predicted, classes)
        if number(confidence) is not None and _stays_inside(file)
    ]
    return Predictions(classes, tuple(items)) if items else None


def _is_class(value: object, classes: tuple[str, ...]) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(classes)


def _stays_inside(file: str) -> bool:
    """Whether the path is relative and never goes up, so that no other file's pixels get into a page."""
    return not Path(file).is_absolute() and ".." not in Path(file).parts
