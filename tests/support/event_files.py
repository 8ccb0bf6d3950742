"""TensorBoard's event files as TensorBoard reads them."""

from pathlib import Path

import pytest


def read_events(folder: Path):
    """Return what TensorBoard reads in one run's folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return events


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = read_events(folder)
    return {
        name: [(one.step, round(one.value, 6)) for one in events.Scalars(name)] for name in events.Tags()["scalars"]
    }
