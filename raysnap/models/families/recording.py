"""Record a model's forward on the meta device: which call gave which tensor, and which integer came from which shape.

The model really runs, on tensors without values, so whatever its Python code does it does; what is recorded are torch's
functions, the calls of modules around them, and arithmetic with the sizes of tensors. No symbol stands for anything.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary

TRACE_DTYPE = torch.float64
"""What the recorded model computes in, as none does otherwise: a call that is given it asked for a tensor's type."""

_IN_PLACE = ("__iadd__", "__isub__", "__imul__", "__itruediv__")

Path: TypeAlias = tuple[int | str, ...]


@dataclass(frozen=True)
class Ref:
    """A value of the record: a tensor, or an integer that follows from a tensor's shape."""

    index: int


@dataclass(frozen=True)
class Own:
    """A parameter or buffer of the model, by its full name."""

    name: str


@dataclass(frozen=True)
class Stray:
    """A tensor that is neither recorded nor the model's own: a call that takes one can't be repeated."""


class DeviceOf:
    """The device on which a block runs."""


class DtypeOf:
    """The floating-point type in which a block runs."""


class LowestOf:
    """The lowest number of that type, which masks are filled with."""


@dataclass(frozen=True)
class Call:
    """A call that can be repeated: a function, or a module by its path, with values of the record as arguments."""

    target: Callable[..., Any] | str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[tuple[Path, int], ...]

    @property
    def inputs(self) -> list[int]:
        """The values that it takes."""
        return [leaf.index for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Ref)]

    @property
    def owned(self) -> list[str]:
        """The model's tensors that it takes as arguments, apart from those of the module called."""
        return [leaf.name for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Own)]

    @property
    def is_complete(self) -> bool:
        """Whether all its arguments are known."""
        return not any(isinstance(leaf, Stray) for leaf in leaves((self.args, self.kwargs)))


@dataclass
class ModuleCall:
    """A call of a module, what was recorded in it, and the calls of modules in it.

    Attributes:
        start: the first recorded call in it.
        end: the one after its last.
        first_value: the first value that was recorded after it began.
    """

    call: Call
    module: nn.Module
    start: int = 0
    end: int = 0
    first_value: int = 0
    children: list[ModuleCall] = field(default_factory=list)

    @property
    def path(self) -> str:
        """Where the module is in the model."""
        return str(self.call.target)


@dataclass
class Record:
    """A recorded forward: `calls` in order, the same as a tree of modules, and what is known of each value.

    Attributes:
        is_int: for each value whether it is an integer.
        numbers: for each value the integer, or the shape of the tensor.
    """

    calls: list[Call]
    root: ModuleCall
    is_int: list[bool]
    numbers: list[Any]
    item: int
    output: int


def leaves(structure: Any) -> Iterator[Any]:
    """Yield what is in nested tuples, lists, dictionaries and slices."""
    if isinstance(structure, tuple | list):
        for entry in structure:
            yield from leaves(entry)
    elif isinstance(structure, Mapping):
        for entry in structure.values():
            yield from leaves(entry)
    elif isinstance(structure, slice):
        yield from leaves((structure.start, structure.stop, structure.step))
    else:
        yield structure


def substitute(structure: Any, change: Callable[[Any], Any]) -> Any:
    """Return nested tuples, lists, dictionaries and slices with each thing in them changed."""
    if isinstance(structure, torch.Size):
        return tuple(substitute(entry, change) for entry in structure)
    if isinstance(structure, tuple | list) and type(structure) in (tuple, list):
        return type(structure)(substitute(entry, change) for entry in structure)
    if type(structure) is dict:
        return {key: substitute(entry, change) for key, entry in structure.items()}
    if isinstance(structure, slice):
        return slice(*(substitute(entry, change) for entry in (structure.start, structure.stop, structure.step)))
    return change(structure)


class Size(int):
    """An integer that remembers from which shape it came; what Python computes with it is recorded."""

    recorder: Recorder
    index: int

    def _apply(self, function: Callable[..., int], *args: Any) -> Any:
        result = function(*(int(arg) if isinstance(arg, Size) else arg for arg in args))
        if isinstance(result, int) and all(isinstance(arg, int) for arg in args):
            return self.recorder.add_int(function, args, result)
        return result

    def __add__(self, other: Any) -> Any:
        return self._apply(operator.add, self, other) if isinstance(other, int) else NotImplemented

    def __radd__(self, other: Any) -> Any:
        return self._apply(operator.add, other, self) if isinstance(other, int) else NotImplemented

    def __sub__(self, other: Any) -> Any:
        return self._apply(operator.sub, self, other) if isinstance(other, int) else NotImplemented

    def __rsub__(self, other: Any) -> Any:
        return self._apply(operator.sub, other, self) if isinstance(other, int) else NotImplemented

    def __mul__(self, other: Any) -> Any:
        return self._apply(operator.mul, self, other) if isinstance(other, int) else NotImplemented

    def __rmul__(self, other: Any) -> Any:
        return self._apply(operator.mul, other, self) if isinstance(other, int) else NotImplemented

    def __floordiv__(self, other: Any) -> Any:
        return self._apply(operator.floordiv, self, other) if isinstance(other, int) else NotImplemented

    def __mod__(self, other: Any) -> Any:
        return self._apply(operator.mod, self, other) if isinstance(other, int) else NotImplemented

    def __neg__(self) -> Any:
        return self._apply(operator.neg, self)


class Recorder(TorchFunctionMode):
    """What is recorded while a model runs."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.calls: list[Call] = []
        self.is_int: list[bool] = []
        self.numbers: list[Any] = []
        self.root = ModuleCall(Call("", (), {}, ()), model)
        self.stack = [self.root]
        self._muted = 0
        self._has_mask = False
        self._current: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no other tensor gets the id of one
        self._sizes: dict[tuple[int, int], int] = {}
        self._paths = {id(module): path for path, module in model.named_modules()}
        named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        self._own: dict[int, str] = {}
        for name, tensor in named:
            self._own.setdefault(id(tensor), name)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        self._has_mask |= func is carry
        if func is Tensor.__bool__ and self._has_mask:
            return False  # it asks whether no token is padding: what is recorded has to do for texts with padding
        result = _without_composing(func, args, kwargs)
        if result is None:
            result = func(*args, **kwargs)
        if self._muted:
            return result
        if isinstance(result, torch.Size) and args and isinstance(args[0], Tensor):
            return self._shape(args[0], result)
        if func is Tensor.size and isinstance(result, int):
            return self._shape(args[0], args[0].shape)[args[1] if len(args) > 1 else kwargs["dim"]]
        if func is Tensor.numel or func is Tensor.nelement:
            sizes = self._shape(args[0], args[0].shape)
            total = 1
            for size in sizes:
                total = size * total
            return total
        name = getattr(func, "__name__", "")
        if name == "__setitem__":
            self._add(set_item, args, kwargs, args[0], in_place=True)
        elif args and result is args[0] and (name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))):
            self._add(func, args, kwargs, result, in_place=True)
        elif any(isinstance(leaf, Tensor) for leaf in leaves(result)):
            return self._add(func, args, kwargs, result)
        return result

    def add_int(self, function: Callable[..., Any], args: tuple[Any, ...], result: int) -> int:
        """Record an integer that Python computes from others, or that is a tensor's size."""
        if self._muted:
            return result
        index = self._new_value(result, is_int=True)
        self.calls.append(Call(function, self.mapped(args), {}, (((), index),)))
        size = Size(result)
        size.recorder, size.index = self, index
        return size

    def give(self, tensor: Tensor) -> int:
        """Record a tensor that no call gives."""
        return self._bind(tensor)

    def index_of(self, tensor: Tensor) -> int | None:
        """Return the value that a tensor is now."""
        return self._current.get(id(tensor))

    def mapped(self, structure: Any) -> Any:
        """Return arguments with values, the model's own tensors, device and type in place of what they are here."""
        return substitute(structure, self._map)

    def _map(self, thing: Any) -> Any:
        if isinstance(thing, Tensor):
            if (index := self._current.get(id(thing))) is not None:
                return Ref(index)
            return Own(self._own[id(thing)]) if id(thing) in self._own else Stray()
        if isinstance(thing, Size):
            return Ref(thing.index)
        if isinstance(thing, torch.device):
            return DeviceOf
        if thing is TRACE_DTYPE:
            return DtypeOf
        if isinstance(thing, float) and thing == torch.finfo(TRACE_DTYPE).min:
            return LowestOf
        if isinstance(thing, Mapping | tuple | list) and any(isinstance(leaf, Tensor) for leaf in leaves(thing)):
            return Stray()
        return thing

    def _shape(self, tensor: Tensor, shape: torch.Size) -> torch.Size:
        index = self._current.get(id(tensor))
        if index is None or self.is_int[index]:
            return shape
        sizes = []
        for dim, number in enumerate(shape):
            if (index, dim) not in self._sizes:
                self._sizes[index, dim] = self.add_int(size_of, (tensor, dim), number)
            sizes.append(self._sizes[index, dim])
        return torch.Size(sizes)

    def _new_value(self, number: Any, *, is_int: bool = False) -> int:
        self.numbers.append(number)
        self.is_int.append(is_int)
        return len(self.numbers) - 1

    def _bind(self, tensor: Tensor) -> int:
        index = self._new_value(tuple(tensor.shape))
        self._current[id(tensor)] = index
        self._kept.append(tensor)
        return index

    def _add(
        self, target: Callable[..., Any] | str, args: Any, kwargs: Any, result: Any, *, in_place: bool = False
    ) -> Any:
        """Record a call; return its result, in which each tensor is an object of its own, unless changed in place."""
        mapped = self.mapped(tuple(args)), self.mapped(kwargs)
        result, outputs = self._bind_outputs(result, rebinds=in_place)
        self.calls.append(Call(target, *mapped, tuple(outputs)))
        return result

    def _bind_outputs(self, result: Any, *, rebinds: bool) -> tuple[Any, list[tuple[Path, int]]]:
        outputs: list[tuple[Path, int]] = []

        def bind(thing: Any, path: Path) -> Any:
            if isinstance(thing, Tensor):
                if not rebinds and (id(thing) in self._current or id(thing) in self._own):
                    thing = thing.view_as(thing)
                outputs.append((path, self._bind(thing)))
                return thing
            if type(thing) in (tuple, list):
                return type(thing)(bind(entry, (*path, position)) for position, entry in enumerate(thing))
            if isinstance(thing, tuple):  # a named tuple, such as what a maximum gives
                for position, entry in enumerate(thing):
                    bind_known(entry, (*path, position))
            elif isinstance(thing, Mapping):
                for key, entry in thing.items():
                    bind_known(entry, (*path, key))
            return thing

        def bind_known(thing: Any, path: Path) -> None:
            if isinstance(thing, Tensor):
                outputs.append((path, self._bind(thing)))

        with torch._C.DisableTorchFunction():
            return bind(result, ()), outputs

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note that a module is called; what torch's own layers do inside is not recorded."""
        if self._muted:
            self._muted += 1
            return
        call = Call(self._paths[id(module)], self.mapped(args), self.mapped(kwargs), ())
        node = ModuleCall(call, module, len(self.calls), first_value=len(self.numbers))
        self.stack[-1].children.append(node)
        self.stack.append(node)
        self._muted = int(is_layer(module))

    def leave(self, result: Any) -> Any:
        """Note what a module gave; a module in which nothing was recorded is a call of its own."""
        if self._muted > 1:
            self._muted -= 1
            return result
        self._muted = 0
        node = self.stack.pop()
        target, args, kwargs = node.call.target, node.call.args, node.call.kwargs
        if self._is_opaque(result):
            del self.calls[node.start :], node.children[:]
        if node.start == len(self.calls):
            result, outputs = self._bind_outputs(result, rebinds=False)
            self.calls.append(Call(target, args, kwargs, tuple(outputs)))
        else:
            result, outputs = self._outputs_of(result, node.first_value, ())
        node.call = Call(target, args, kwargs, tuple(outputs))
        node.end = len(self.calls)
        return result

    def _is_opaque(self, result: Any) -> bool:
        """Return whether a module gives a tensor that no recorded call gave, such as one of compiled code."""
        tensors = [leaf for leaf in leaves(result) if isinstance(leaf, Tensor)]
        return any(id(tensor) not in self._current and id(tensor) not in self._own for tensor in tensors)

    def _outputs_of(self, result: Any, first_value: int, path: Path) -> tuple[Any, list[tuple[Path, int]]]:
        """Return what a module gave and the values in it; what was there before it began becomes a value of its own."""
        if isinstance(result, Tensor):
            index = self._current.get(id(result))
            if index is None or index < first_value:
                result = self._add(same, (result,), {}, result)
                index = self._current[id(result)]
            return result, [(path, index)]
        if isinstance(result, Size):
            return result, [(path, result.index)]
        outputs: list[tuple[Path, int]] = []
        if type(result) in (tuple, list):
            entries = []
            for position, entry in enumerate(result):
                entry, found = self._outputs_of(entry, first_value, (*path, position))
                entries.append(entry)
                outputs += found
            return type(result)(entries), outputs
        if isinstance(result, Mapping):
            known = ((key, self._current.get(id(entry))) for key, entry in result.items())
            outputs = [((*path, key), index) for key, index in known if index is not None]
        return result, outputs


def record(model: nn.Module, item: Tensor, run: Callable[[nn.Module, Tensor], Tensor]) -> Record:
    """Run a model on the meta device in eval mode and return what it did.

    Args:
        model: all of it on the meta device, in `TRACE_DTYPE`; hooks are set on its modules while it runs.
        run: calls the model with an item, and returns the logits.
    """
    recorder = Recorder(model)
    handles = []
    for module in model.modules():
        handles.append(
            module.register_forward_pre_hook(
                lambda module, args, kwargs: recorder.enter(module, args, kwargs), with_kwargs=True
            )
        )
        handles.append(module.register_forward_hook(lambda _module, _args, output: recorder.leave(output)))
    try:
        index = recorder.give(item)
        with torch.no_grad(), recorder:
            logits = run(model, item)
        output = recorder.index_of(logits)
    finally:
        for handle in handles:
            handle.remove()
    assert output is not None, "what a model gives is one of the values recorded"
    recorder.root.end = len(recorder.calls)
    return Record(recorder.calls, recorder.root, recorder.is_int, recorder.numbers, index, output)


def _without_composing(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return what a function gives on the meta device; None where torch is to find out, or to say what is wrong.

    Torch composes these there from hundreds of smaller calls, which takes most of the time of a forward.
    """
    if not args or not isinstance(args[0], Tensor) or not args[0].is_meta:
        return None
    x, more = args[0], args[1:]
    if func in _ACTIVATIONS:
        return torch.empty_like(x)
    if func is nn.functional.layer_norm and more and tuple(x.shape[-len(more[0]) :]) == tuple(more[0]):
        return torch.empty_like(x)
    if func is nn.functional.batch_norm and more and more[0] is not None and more[0].shape[0] == x.shape[1]:
        return torch.empty_like(x)
    if func is nn.functional.linear and more and x.shape[-1] == more[0].shape[-1] and more[0].dim() == 2:
        return x.new_empty((*x.shape[:-1], more[0].shape[0]))
    if func is nn.functional.scaled_dot_product_attention and len(more) > 1 and not kwargs.get("enable_gqa"):
        keys, values = more[0], more[1]
        fits = x.shape[-1] == keys.shape[-1] and keys.shape[-2] == values.shape[-2] and x.shape[:-2] == keys.shape[:-2]
        return x.new_empty((*x.shape[:-1], values.shape[-1])) if fits else None
    return None


_ACTIVATIONS = (nn.functional.gelu, nn.functional.silu)


def size_of(tensor: Tensor, dim: int) -> int:
    """Return one size of a tensor."""
    return tensor.shape[dim]


def same(tensor: Tensor) -> Tensor:
    """Return the tensor: what a module gives back as it was given."""
    return tensor


def set_item(tensor: Tensor, key: Any, value: Any) -> Tensor:
    """Assign to a part of a tensor, and return the tensor."""
    tensor[key] = value
    return tensor


def is_layer(module: nn.Module) -> bool:
    """Return whether a module is one of torch's own layers."""
    where = type(module).__module__
    return where.startswith("torch.nn.modules.") and not where.endswith((".container", ".module"))


def carry(mask: Tensor) -> Tensor:
    """Return which tokens of a text count: what every block is given beside its input, as one more channel of it."""
    if has_torch_function_unary(mask):
        return handle_torch_function(carry, (mask,), mask)
    return mask
