"""How blocks compute follows from the precision, the device, and what the environment takes from it."""

import os
import platform
import subprocess
import sys
from typing import get_args

import pytest
import torch

from raysnap.config.choices import Precision
from raysnap.models.numerics import Numerics

CPU = torch.device("cpu")
CHOOSE = """
import torch
from raysnap.models.numerics import Numerics
chosen, fast = (Numerics.for_inference(precision, torch.device("cpu")) for precision in ("auto", "fast_float32"))
print(chosen.dtype, chosen == fast)
"""


def test_a_process_limited_to_avx2_computes_in_float32():
    """Torch reads the variable once; only a process of its own can show it."""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "avx2"}
    found = subprocess.run([sys.executable, "-c", CHOOSE], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["torch.float32", "True"]


def test_unequal_arithmetic_has_unequal_fingerprints():
    asked = [precision for precision in get_args(Precision) if precision != "auto"]
    numerics = [Numerics.for_inference(precision, CPU) for precision in asked]
    assert len({one.fingerprint for one in numerics}) == len(asked)
    assert Numerics.for_inference("auto", CPU) in numerics


@pytest.mark.skipif(platform.machine() != "x86_64", reason="blocks are rewritten for x86 CPUs")
def test_float32_is_torchs_own_arithmetic_and_auto_the_fastest():
    fused = {precision: Numerics.for_inference(precision, CPU).is_fused for precision in get_args(Precision)}
    assert (fused["float32"], fused["fast_float32"], fused["auto"]) == (False, True, True)
