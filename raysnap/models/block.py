"""A block: some of a model's modules run one after the other, under the names that the library gives their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from torch import Tensor, nn

from raysnap.errors import WeightsError

Tensors: TypeAlias = dict[str, Tensor]

Shape: TypeAlias = tuple[int, ...]


class Block(nn.Module):
    """Some of a model's modules run one after the other, under the names of the library that the model comes from.

    Attributes:
        name: `stem`, `head`, or the library's path of the residual, MBConv or encoder block.
        paths: for each step the path of the module, `""` where it has no parameters or names them in full.
        stored_names: of tensors that the library saves under other names than those of its modules, by the latter.
    """

    def __init__(self, name: str, steps: Sequence[tuple[str, nn.Module]]):
        super().__init__()
        self.name = name
        self.paths = tuple(path for path, _ in steps)
        self.steps = nn.ModuleList(module for _, module in steps)
        self.stored_names: Mapping[str, str] = {}

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x

    def tensors(self) -> Tensors:
        """Return parameters and buffers under the full names that the library saves, detached, not copied."""
        return {
            self._stored_name(path, key): value.detach()
            for path, step in zip(self.paths, self.steps, strict=True)
            for key, value in step.state_dict().items()
        }

    def _stored_name(self, path: str, key: str) -> str:
        name = f"{path}.{key}" if path else key
        return self.stored_names.get(name, name)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Adopt `tensors` as the parameters and buffers, without copying them.

        Raises:
            WeightsError: a tensor is missing, unknown or of another shape.
        """
        expected = {name: tuple(value.shape) for name, value in self.tensors().items()}
        found = {name: tuple(value.shape) for name, value in tensors.items()}
        if expected != found:
            raise WeightsError(f"block {self.name}: {difference(expected, found)}")
        for path, step in zip(self.paths, self.steps, strict=True):
            own = {key: tensors[self._stored_name(path, key)] for key in step.state_dict()}
            step.load_state_dict(own, strict=True, assign=True)


def difference(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> str:
    """Describe the first few names or shapes in which two sets of tensors differ."""
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    if missing or unknown:
        parts = [
            f"{len(names)} {word} ({', '.join(names[:3])})"
            for names, word in ((missing, "missing"), (unknown, "unknown"))
            if names
        ]
        return f"expected {len(expected)} tensors, found {len(found)}: {'; '.join(parts)}"
    name = next(name for name in expected if expected[name] != found[name])
    return f"{name}: expected shape {expected[name]}, found {found[name]}"
