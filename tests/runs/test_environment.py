"""The environment of a run: what it says, and that it costs no import of torch where there is no GPU to name."""

import subprocess
import sys

import torch

from raysnap import system
from raysnap.runs.environment import describe_environment


def test_versions_processors_and_commit_are_told():
    found = describe_environment()
    assert found["torch"] == torch.__version__.partition("+")[0] and found["cpu"] and found["num_cpus"] > 0
    assert found.keys() >= {"raysnap", "torchvision", "ray", "python", "platform", "gpus", "commit"}


def test_gpus_are_named_where_a_driver_is(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", "GPU {}".format)
    monkeypatch.setattr(system, "GPU_DRIVERS", (tmp_path / "none", tmp_path))
    assert describe_environment()["gpus"] == ["GPU 0", "GPU 1"]


def test_without_a_driver_torch_is_not_imported():
    code = """
import sys
from raysnap import system
from raysnap.runs import environment
system.GPU_DRIVERS = ()
print(environment.describe_environment()["gpus"], "torch" in sys.modules)
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[] False\n"
