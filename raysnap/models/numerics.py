"""How a fine-tune computes: precision, memory layout and determinism, chosen per device from the configuration."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raysnap.config.choices import Precision
from raysnap.config.train import TrainConfig

_DTYPES = {
    "float32": torch.float32,
    "fast_float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_CPU_BFLOAT16 = ("avx512_bf16", "amx_bf16", "sve_bf16", "bf16")
# Depthwise and grouped convolutions train 1.1 to 1.5 times as fast so on an x86 CPU; ResNets, ConvNeXts and vision
# transformers gain less than a tenth.
_CHANNELS_LAST_ON_CPU = ("mobilenet_v", "efficientnet_", "regnet_")
_FUSING_VERSION = 2  # of `search.engine.fusing`: another one gives other last bits, which caches keep apart
_CUBLAS_WORKSPACE = ":4096:8"  # without it the order of cuBLAS's sums varies


@dataclass(frozen=True)
class Numerics:
    """How blocks compute.

    Attributes:
        dtype: input and output type of convolutions and matrix products; parameters stay float32.
        channels_last: whether images are stored with the channels of a pixel together.
        deterministic: whether only deterministic kernels may run.
        tries_kernels: whether cuDNN times its kernels on each new input shape, which pays over epochs of equal batches.
        is_fused: whether blocks are rewritten for this CPU, see `search.engine.fusing`.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    deterministic: bool = False
    tries_kernels: bool = False
    is_fused: bool = False

    @classmethod
    def choose(cls, config: TrainConfig, device: torch.device, architecture: str | None = None) -> Numerics:
        """Return what the configuration asks for, or what is best for the architecture on the device."""
        is_gpu = device.type == "cuda"
        if config.precision != "auto":
            dtype = _DTYPES[config.precision]
        else:
            dtype = _half_precision(device) if is_gpu else torch.float32
        channels_last = config.channels_last
        if channels_last is None:
            channels_last = is_gpu or (architecture or "").startswith(_CHANNELS_LAST_ON_CPU)
        return cls(device, dtype, channels_last, config.deterministic, is_gpu and not config.deterministic)

    @classmethod
    def for_inference(cls, precision: Precision, device: torch.device, *, deterministic: bool = False) -> Numerics:
        """Return how blocks run that are not trained: in the device's fastest type, with channels together.

        With `auto`, a CPU uses bfloat16 if it multiplies it in hardware, else float32. In either it takes the
        arithmetic that is fastest; `float32` asks for torch's own. A rung has few batches of any one size: trying
        cuDNN's kernels would take seconds where the whole rung takes one second on an H100.
        """
        if precision != "auto":
            dtype = _DTYPES[precision]
        else:
            has_hardware = device.type == "cuda" or _multiplies_bfloat16()
            dtype = _half_precision(device) if has_hardware else torch.float32
        is_fused = device.type == "cpu" and precision != "float32" and _fuses(dtype)
        return cls(device, dtype, channels_last=True, deterministic=deterministic, is_fused=is_fused)

    @property
    def fingerprint(self) -> str:
        """What the last bits of outputs depend on, apart from weights and inputs."""
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        else:
            name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        layout = f"channels_last={self.channels_last} fused={_FUSING_VERSION if self.is_fused else 0}"
        return f"{self.device.type} {name} torch {torch.__version__} {self.dtype} {layout}"

    @property
    def num_streams(self) -> int:
        """How many batches run at once: each core of a CPU takes its own, with one thread; a GPU takes one."""
        return torch.get_num_threads() if self.device.type == "cpu" else 1

    @property
    def scales_gradients(self) -> bool:
        """Whether gradients need scaling, as they would vanish in float16."""
        return self.dtype == torch.float16

    def autocast(self) -> torch.autocast:
        """Return the context in which blocks run."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory layout of images and of the parameters of convolutions."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def lay_out(self, blocks: nn.Module) -> None:
        """Convert the parameters of convolutions to the chosen memory layout, in place."""
        blocks.to(memory_format=self.memory_format)

    def lay_out_images(self, images_N3HW: Tensor) -> Tensor:
        """Return the images in the chosen memory layout."""
        return images_N3HW.contiguous(memory_format=self.memory_format)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Apply the process-wide settings that this needs, and restore the previous ones afterwards."""
        was_strict = torch.are_deterministic_algorithms_enabled()
        only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
        searched = torch.backends.cudnn.benchmark
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _CUBLAS_WORKSPACE)
            torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = self.tries_kernels
        try:
            yield
        finally:
            if self.deterministic:  # the call imports torch's compiler, for a second
                torch.use_deterministic_algorithms(was_strict, warn_only=only_warned)
            torch.backends.cudnn.benchmark = searched


def _half_precision(device: torch.device) -> torch.dtype:
    """Return the two-byte type that the device computes in."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def _multiplies_bfloat16() -> bool:
    """Return whether this CPU has instructions for bfloat16 and torch may use them; False if torch is too old to know.

    A process that `ATEN_CPU_CAPABILITY=avx2` limits multiplies bfloat16 in software, at a fraction of float32's speed.
    """
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    is_limited = torch.backends.cpu.get_cpu_capability() == "AVX2"
    return not is_limited and any(capabilities.get(name, False) for name in _CPU_BFLOAT16)


def _fuses(dtype: torch.dtype) -> bool:
    """Return whether torch has oneDNN's fused layers for this type, and this CPU is of the kind they were tried on."""
    has_mkldnn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if platform.machine().lower() not in ("x86_64", "amd64") or not has_mkldnn:
        return False
    supports_bfloat16: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or (dtype == torch.bfloat16 and supports_bfloat16)
