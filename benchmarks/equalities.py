"""Which outputs are equal to the last bit on this processor: other batches, threads, memory layouts and gradient modes.

Runs each comparison in a process limited to AVX2 and in one that uses all that the processor has. A comparison that is
equal here may differ elsewhere; `docs/numerics.md` has the table of the processors that were tried.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.vision_transformer import VisionTransformer

from raysnap.system import cpu_name

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
NUM_ITEMS = 64


def models() -> Iterator[tuple[str, nn.Module]]:
    """Yield a network with convolutions, one with depthwise ones, and one with attention, with random weights."""
    for name in ("resnet18", "mobilenet_v3_small"):
        torch.manual_seed(0)
        yield name, get_model(name, num_classes=10).eval()
    torch.manual_seed(0)
    vit = VisionTransformer(64, 16, num_layers=3, num_heads=4, hidden_dim=128, mlp_dim=256, num_classes=10)
    nn.init.normal_(vit.heads[-1].weight)  # which begins as zeros
    yield "vit", vit.eval()


def in_batches(model: Callable[[Tensor], Tensor], images: Tensor, size: int) -> Tensor:
    """Return the model's outputs of all images, computed in batches of a size."""
    return torch.cat([model(batch) for batch in images.split(size)])


@torch.no_grad()
def compare(model: nn.Module) -> dict[str, float]:
    """Return the largest difference of each comparison; 0 is equal to the last bit."""
    images = torch.rand(NUM_ITEMS, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    reference = model(images)
    found = {"the same again": model(images)}
    for size in (1, 7, 32):
        found[f"batches of {size} and of {NUM_ITEMS}"] = in_batches(model, images, size)
    found["an item at another place"] = model(images.flip(0)).flip(0)
    torch.set_num_threads(2 if torch.get_num_threads() == 1 else 1)
    found["one thread and two"] = model(images)
    torch.set_num_threads(1)
    found["channels last"] = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    model.to(memory_format=torch.contiguous_format)
    with torch.inference_mode():
        found["no_grad and inference_mode"] = model(images)
    with torch.enable_grad():
        found["no_grad and grad"] = model(images).detach()
    differences = {name: float((output - reference).abs().max()) for name, output in found.items()}
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images)
        differences["bfloat16: batches of 7 and of 64"] = float((in_batches(model, images, 7) - half).abs().max())
    return differences


def measure() -> dict[str, object]:
    """Return the comparisons of each model in this process, and digests of outputs to compare between processes."""
    torch.set_num_threads(1)
    images = torch.rand(NUM_ITEMS, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    result: dict[str, object] = {"capability": torch.backends.cpu.get_cpu_capability()}
    for name, model in models():
        with torch.no_grad():
            digest = hashlib.sha256(model(images).numpy().tobytes()).hexdigest()[:12]
        result[name] = {"digest": digest, "largest_differences": compare(model)}
    return result


if __name__ == "__main__":
    if sys.argv[1:] == ["--here"]:
        sys.stdout.write(json.dumps(measure()) + "\n")
        sys.exit()
    sys.stderr.write("comparing outputs of three networks in two processes; differences of 0 are equal to the bit\n")
    sides = []
    for variables in ({}, AVX2):
        command = [sys.executable, __file__, "--here"]
        done = subprocess.run(command, env=os.environ | variables, check=True, capture_output=True, text=True)
        sides.append(json.loads(done.stdout.splitlines()[-1]))
    sys.stdout.write(json.dumps({"cpu": cpu_name(), "torch": torch.__version__, "sides": sides}) + "\n")
