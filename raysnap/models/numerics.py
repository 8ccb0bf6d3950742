"""How a fine-tune computes: its precision, memory layout and determinism, chosen per device from the configuration."""

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

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CPU_BFLOAT16 = ("avx512_bf16", "amx_bf16", "sve_bf16", "bf16")
_CUBLAS_WORKSPACE = ":4096:8"  # without it cuBLAS adds up in an order of its own


@dataclass(frozen=True)
class Numerics:
    """How blocks compute.

    Attributes:
        dtype: what convolutions and matrix products take and give; parameters stay float32.
        channels_last: whether images lie with their channels together.
        deterministic: whether only deterministic kernels may run.
        tries_kernels: whether cuDNN times its kernels on each new shape of inputs, which epochs of equal batches repay.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    deterministic: bool = False
    tries_kernels: bool = False

    @classmethod
    def choose(cls, config: TrainConfig, device: torch.device) -> Numerics:
        """What the configuration asks for, or what is best on the device where it leaves that open."""
        is_gpu = device.type == "cuda"
        if config.precision != "auto":
            dtype = _DTYPES[config.precision]
        else:
            dtype = _half_precision(device) if is_gpu else torch.float32
        channels_last = is_gpu if config.channels_last is None else config.channels_last
        return cls(device, dtype, channels_last, config.deterministic, is_gpu and not config.deterministic)

    @classmethod
    def for_inference(cls, precision: Precision, device: torch.device, *, deterministic: bool = False) -> Numerics:
        """How blocks run that nobody trains: in what the device is fastest at, channels together.

        Left to `auto`, a CPU takes bfloat16 where it multiplies it in hardware: ResNet-18 at 224 px runs twice as fast
        in it on AMD EPYC of the fourth generation, and channels together save a fifth in either precision. Rungs see
        few batches of any one size: trying kernels would take seconds of what is a second on an H100.
        """
        if precision != "auto":
            return cls(device, _DTYPES[precision], True, deterministic)
        has_hardware = device.type == "cuda" or _multiplies_bfloat16()
        return cls(device, _half_precision(device) if has_hardware else torch.float32, True, deterministic)

    @property
    def fingerprint(self) -> str:
        """What the last bits of outputs depend on, weights and inputs aside."""
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        else:
            name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        return f"{self.device.type} {name} torch {torch.__version__} {self.dtype} channels_last={self.channels_last}"

    @property
    def scales_gradients(self) -> bool:
        """Whether gradients would vanish without a scale, as they do in float16."""
        return self.dtype == torch.float16

    def autocast(self) -> torch.autocast:
        """The context in which blocks run."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @property
    def memory_format(self) -> torch.memory_format:
        """How images and the parameters of convolutions lie in memory."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def lay_out(self, blocks: nn.Module) -> None:
        """Puts the parameters of convolutions in the chosen memory layout."""
        blocks.to(memory_format=self.memory_format)

    def lay_out_images(self, images_N3HW: Tensor) -> Tensor:
        """The images in the chosen memory layout."""
        return images_N3HW.contiguous(memory_format=self.memory_format)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The settings of the process that this needs; they are put back afterwards."""
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
            torch.use_deterministic_algorithms(was_strict, warn_only=only_warned)
            torch.backends.cudnn.benchmark = searched


def _half_precision(device: torch.device) -> torch.dtype:
    """The type of two bytes that the device computes in."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def _multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16; older torch can't tell."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in _CPU_BFLOAT16)
