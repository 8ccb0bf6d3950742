"""Job files that tests write, load and see refused."""

import time
from pathlib import Path

import pytest

from raysnap.config.jobs import GenerateConfig
from raysnap.config.load import load_config
from raysnap.errors import ConfigError


def write(folder: Path, text: str | bytes) -> Path:
    """Write a job file into the folder; return its path."""
    path = folder / "job.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def load(folder: Path, text: str, *overrides: str) -> GenerateConfig:
    """Load a generate job of this text."""
    return load_config(write(folder, text), list(overrides), GenerateConfig)


def refusal(folder: Path, text: str | bytes, *overrides: str) -> str:
    """Return the message with which a generate job of this text is refused: one line that names the file."""
    path = write(folder, text)
    started_s = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        load_config(path, list(overrides), GenerateConfig)
    assert time.perf_counter() - started_s < 10  # about 1 s at most, on a machine that does nothing else
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message
