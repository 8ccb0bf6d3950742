"""The sizes of the GPUs that a job would use are known before Ray starts, or nothing is said of them."""

import subprocess
from types import SimpleNamespace

import pytest

from raysnap.cluster import gpu_room
from raysnap.cluster.gpu_room import PRETENDED_BYTES, known_gpu_bytes, trials_per_gpu


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    for name in (PRETENDED_BYTES, "RAY_ADDRESS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    listed = SimpleNamespace(stdout="0, 1000\n1, 2000\n2, [N/A]\n")
    monkeypatch.setattr(gpu_room.subprocess, "run", lambda *_, **__: listed)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, [1000, 2000]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, [2000]),
        ({"CUDA_VISIBLE_DEVICES": "1, 0"}, [2000, 1000]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8a3f"}, []),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, []),
        ({PRETENDED_BYTES: str(5 * 2**20), "RAY_ADDRESS": "10.0.0.1:6379"}, [5]),
        ({PRETENDED_BYTES: "much"}, [1000, 2000]),
    ],
)
def test_gpus_of_this_machine_are_known(monkeypatch, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert known_gpu_bytes() == tuple(size * 2**20 for size in expected)


@pytest.mark.parametrize("error", [FileNotFoundError(), subprocess.TimeoutExpired("nvidia-smi", 30)])
def test_without_a_driver_nothing_is_known(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(gpu_room.subprocess, "run", fail)
    assert known_gpu_bytes() == ()


def test_a_gpu_holds_one_trial_at_least():
    assert [trials_per_gpu(peak, 10_000) for peak in (20_000, 9_000, 4_545, 900)] == [1, 1, 2, 10]
