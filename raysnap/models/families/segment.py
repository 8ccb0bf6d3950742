"""A part of a model's forward as a module of its own: recorded calls, and the layers and tensors that they take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raysnap.models.families.recording import Call, DeviceOf, DtypeOf, LowestOf, Own, Path, Ref, leaves, substitute


@dataclass(frozen=True)
class _Step:
    """A call, whether its arguments have to be filled in, and the values that nothing takes after it."""

    call: Call
    is_constant: bool
    dropped: tuple[int, ...]


class Program:
    """Calls in order, from one value to another; copies of a module share it."""

    def __init__(self, calls: Sequence[Call], source: int, result: int):
        self.source, self.result = source, result
        last_use = {value: position for position, call in enumerate(calls) for value in call.inputs}
        made = {index: position for position, call in enumerate(calls) for _, index in call.outputs}
        ends: dict[int, list[int]] = {}
        for value in {source} | made.keys():
            if value != result:
                ends.setdefault(last_use.get(value, made.get(value, 0)), []).append(value)
        self.steps = tuple(
            _Step(call, _is_constant(call), tuple(ends.get(position, ()))) for position, call in enumerate(calls)
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return self

    @property
    def chain(self) -> list[str] | None:
        """The paths of the modules that it runs one after the other; None where it does anything else."""
        value, paths = self.source, []
        for step in self.steps:
            call = step.call
            is_plain = call.args == (Ref(value),) and not call.kwargs and [path for path, _ in call.outputs] == [()]
            if not isinstance(call.target, str) or not is_plain:
                return None
            paths.append(call.target)
            value = call.outputs[0][1]
        return paths if value == self.result else None

    @property
    def joined_widths(self) -> list[int] | None:
        """The widths of the tensors that were joined into what it is given; None where that is one."""
        first = self.steps[0].call
        return list(first.args[1]) if first.target is torch.split and first.args[0] == Ref(self.source) else None


class Segment(nn.Module):
    """Runs a program on the modules and tensors of a model that it names, under their names in the model."""

    def __init__(self, program: Program, model: nn.Module):
        super().__init__()
        self.program = program
        calls = [step.call for step in program.steps]
        for call in calls:
            if isinstance(call.target, str):
                place(self, call.target, model.get_submodule(call.target))
        for name in dict.fromkeys(name for call in calls for name in call.owned):
            place_tensor(self, name, model)

    def forward(self, x: Tensor) -> Tensor:
        values: dict[int, Any] = {self.program.source: x}
        dtype = x.dtype if x.is_floating_point() else next(self.parameters()).dtype

        def fill(thing: Any) -> Any:
            if isinstance(thing, Ref):
                return values[thing.index]
            if isinstance(thing, Own):
                return self._find(thing.name)
            if thing is DeviceOf:
                return x.device
            if thing is DtypeOf:
                return dtype
            return torch.finfo(dtype).min if thing is LowestOf else thing

        for step in self.program.steps:
            call = step.call
            function = self._find(call.target) if isinstance(call.target, str) else call.target
            if step.is_constant:
                result = function(*call.args, **call.kwargs)
            else:
                args, kwargs = substitute(call.args, fill), substitute(dict(call.kwargs), fill)
                result = function(*args, **kwargs)
            for path, index in call.outputs:
                values[index] = _at(result, path)
            del result
            for index in step.dropped:
                values.pop(index, None)
        output: Tensor = values[self.program.result]
        return output

    def _find(self, name: str) -> Any:
        found: Any = self
        for part in name.split("."):
            found = getattr(found, part)
        return found


class Idle(nn.Module):
    """Tensors that a forward in eval mode never takes, such as those of heads for training; they never change.

    They are buffers, so that no optimizer waits for their gradients.
    """

    def __init__(self, names: Iterable[str], model: nn.Module):
        super().__init__()
        for name in names:
            path, _, key = name.rpartition(".")
            holder = _holder(self, path)
            holder.register_buffer(key, _tensor(model, name).detach())

    def forward(self, x: Tensor) -> Tensor:
        return x


def place(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module below another one, at its path; if it is there already, do nothing."""
    parent, _, key = path.rpartition(".")
    holder = _holder(root, parent)
    if key not in holder._modules:
        holder.add_module(key, module)


def place_tensor(root: nn.Module, name: str, model: nn.Module) -> None:
    """Put a model's parameter or buffer below a module, at its path; if it is there already, do nothing."""
    path, _, key = name.rpartition(".")
    holder = _holder(root, path)
    if key in holder._parameters or key in holder._buffers:
        return
    tensor, owner = _tensor(model, name), model.get_submodule(path)
    if isinstance(tensor, nn.Parameter):
        holder.register_parameter(key, tensor)
    else:
        holder.register_buffer(key, tensor, persistent=key not in owner._non_persistent_buffers_set)


def grid_edge(tokens: Tensor, dim: int, num_more: int) -> int:
    """Return the edge of the square grid that the tokens of a square image are, some more tokens aside.

    Raises:
        RuntimeError: they are no square.
    """
    num_tokens = tokens.shape[dim] - num_more
    edge = math.isqrt(num_tokens)
    if edge * edge != num_tokens:
        raise RuntimeError(f"expected the tokens of a square image, found {num_tokens}")
    return edge


def join_mask(hidden_NTD: Tensor, mask_NT: Tensor) -> Tensor:
    """Return the tokens of texts with one more channel, which says of each token whether it counts."""
    return torch.cat([hidden_NTD, mask_NT.to(hidden_NTD.dtype).unsqueeze(-1)], -1)


def without_mask(joined: Tensor) -> Tensor:
    """Return the tokens of texts without their last channel."""
    return joined[..., :-1].contiguous()


def mask_of(joined: Tensor) -> Tensor:
    """Return which tokens count, from their last channel."""
    return joined[..., -1] > 0.5


def _holder(root: nn.Module, path: str) -> nn.Module:
    """Return the module at a path, with empty ones created on the way."""
    for part in filter(None, path.split(".")):
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    return root


def _tensor(model: nn.Module, name: str) -> Tensor:
    path, _, key = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(path), key)
    return tensor


def _is_constant(call: Call) -> bool:
    things = list(leaves((call.args, call.kwargs)))
    return not any(isinstance(thing, Ref | Own) or thing in (DeviceOf, DtypeOf, LowestOf) for thing in things)


def _at(result: Any, path: Path) -> Any:
    for key in path:
        result = result[key]
    return result
