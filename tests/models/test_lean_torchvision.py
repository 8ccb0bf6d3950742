"""torchvision without torch's compiler: later imports, and `torch.compile`, find the real one."""

import subprocess
import sys

CODE = """
import sys
from raysnap.models import lean_torchvision
assert "torch._dynamo" not in sys.modules and lean_torchvision.COMPILER not in sys.modules
sys.modules[lean_torchvision.COMPILER] = lean_torchvision._Postponed(lean_torchvision.COMPILER)
from torch._dynamo.utils import has_triton  # by another thread, while torchvision is imported
import torch, torchvision, torch._dynamo.utils
assert has_triton is torch._dynamo.utils.has_triton and torch._dynamo.utils.__file__
assert sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu") is True
align = torch.compile(torchvision.ops.RoIAlign(2, 1.0, 1), backend="eager", fullgraph=True)
images, boxes = torch.rand(1, 3, 8, 8), torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
assert torch.equal(align(images, boxes), torchvision.ops.roi_align(images, boxes, 2, sampling_ratio=1))
"""


def test_the_compiler_is_there_for_whoever_needs_it():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_modules_imported_before_are_left_alone():
    code = (
        "import torchvision, torch._dynamo.utils as before; from raysnap.models.lean_torchvision import models; "
        "import sys; assert models is torchvision.models and sys.modules['torch._dynamo.utils'] is before"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0
