"""How blocks compute follows from the device, and from what the environment takes from it."""

import os
import subprocess
import sys

CHOOSE = """
import torch
from raysnap.models.numerics import Numerics
print(Numerics.for_inference("auto", torch.device("cpu")).dtype)
"""


def test_a_process_limited_to_avx2_computes_in_float32():
    """Torch reads the variable once; only a process of its own can show it."""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "avx2"}
    found = subprocess.run([sys.executable, "-c", CHOOSE], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "torch.float32"
