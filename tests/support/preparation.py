"""Datasets made from their tiny sources, or refused."""

from pathlib import Path

import pytest

from raysnap.errors import DataError
from raysnap.prepare.convert import PrepareResult, prepare_dataset


def prepare(name: str, source: Path | None, data_dir: Path, **options) -> PrepareResult:
    """Return the tiny source of a dataset, prepared although its counts are not the published ones."""
    return prepare_dataset(name, source, data_dir, **({"allow_other_counts": True} | options))


def images_of(result: PrepareResult) -> dict[str, bytes]:
    return {
        str(item.path.relative_to(result.dataset.root)): item.path.read_bytes()
        for items in result.dataset.splits.values()
        for item in items
    }


def refuse(name: str, source: Path | None, data_dir: Path, message: str, **options) -> str:
    with pytest.raises(DataError, match=message) as caught:
        prepare(name, source, data_dir, **options)
    assert "\n" not in str(caught.value)
    assert not data_dir.exists() or list(data_dir.iterdir()) == []
    return str(caught.value)
