"""How people call the splits of a dataset."""

from __future__ import annotations

import re

SPLITS = ("train", "val", "test")

_CALLED = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_TRAILING = re.compile(r"(?<=[a-z])([ _-]?(images?|imgs?|data|set|split|folder))?([ _-]?\d+)?$")
_EVALUATION = ("eval", "evaluation")  # Hugging Face's `datasets` takes it as test, its trainer as validation


def split_called(name: str) -> str | None:
    """Return the split that is called so, in any case, such as `train_images` or `val2017`; None where it is none.

    `eval` is val.
    """
    lower = _plain(name)
    if lower in _EVALUATION:
        return "val"
    return next((split for split, names in _CALLED.items() if lower in names), None)


def split_mentioned(name: str) -> str | None:
    """Return the split that a file's name mentions, such as `train_labels.csv`; None where it mentions none."""
    stem = name.rpartition("/")[2].partition(".")[0]
    words = re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem).lower())
    return next((split for word in words if (split := split_called(word)) is not None), None)


def is_evaluation(name: str) -> bool:
    """Return whether a split's name may mean val or test."""
    return _plain(name) in _EVALUATION


def _plain(name: str) -> str:
    """Return a split's name in lower case, without a year or a word for what it holds."""
    return _TRAILING.sub("", name.strip().lower())
