"""How a fine-tune computes: its precision, memory layout and determinism, chosen per device from the configuration."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raysnap.config import TrainConfig

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CUBLAS_WORKSPACE = ":4096:8"  # without it cuBLAS adds up in an order of its own


@dataclass(frozen=True)
class Numerics:
    """How blocks compute.

    Attributes:
        dtype: what convolutions and matrix products take and give; parameters stay float32.
        channels_last: whether images lie with their channels together.
        deterministic: whether only deterministic kernels may run.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    deterministic: bool = False

    @classmethod
    def choose(cls, config: TrainConfig, device: torch.device) -> Numerics:
        """What the configuration asks for, or what is best on the device where it leaves that open."""
        is_gpu = device.type == "cuda"
        if config.precision != "auto":
            dtype = _DTYPES[config.precision]
        elif not is_gpu:
            dtype = torch.float32
        else:
            has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
            dtype = torch.bfloat16 if has_bfloat16 else torch.float16
        channels_last = is_gpu if config.channels_last is None else config.channels_last
        return cls(device, dtype, channels_last, config.deterministic)

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
        torch.backends.cudnn.benchmark = self.device.type == "cuda" and not self.deterministic
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was_strict, warn_only=only_warned)
            torch.backends.cudnn.benchmark = searched
