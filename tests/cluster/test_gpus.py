"""A GPU of Ray's that torch does not find is refused, unless GPUs are pretended."""

import pytest
import torch

from raysnap.cluster.gpus import device_name, granted_device
from raysnap.errors import ClusterError


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_torch_does_not_find_is_refused(monkeypatch):
    monkeypatch.delenv("RAYSNAP_PRETEND_GPUS", raising=False)
    with pytest.raises(ClusterError, match=r"node 10\.0\.0\.7: Ray counts a GPU there .*torch \d.*driver"):
        granted_device(0.5, "10.0.0.7")
    assert granted_device(0, "10.0.0.7").type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_pretended_gpu_is_the_cpu_by_another_name(monkeypatch):
    monkeypatch.setenv("RAYSNAP_PRETEND_GPUS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    device = granted_device(1, "10.0.0.7")
    assert (device.type, device_name(device)) == ("cpu", "pretended GPU 3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_name(device) == "cpu"
