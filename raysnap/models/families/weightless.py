"""Build a library's model without weights: parameters on the meta device, what it computes with beside them real."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from raysnap.models.families.recording import leaves, substitute

_GET_DEVICE = Tensor.device.__get__  # how torch calls it
_building = threading.Lock()


def build_weightless(make: Callable[[], nn.Module], *, keeps_buffers: bool = False) -> nn.Module:
    """Return the model that `make` builds, in eval mode: what is loaded is on the meta device, all else is real.

    Tables that a library computes as it builds a model, and doesn't save, keep their values; with `keeps_buffers`, so
    do those that it saves.
    """
    with _building, _parameters_on_meta(), _Building(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of initialisations, and of packages that this model does without
        model = make()
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and not keeps_buffers and name not in module._non_persistent_buffers_set:
                module._buffers[name] = buffer.to("meta")
    return model.eval()


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Move each parameter that a module is given to the meta device, one that two modules share to one."""
    own, thread = nn.Module.register_parameter, threading.get_ident()
    moved: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # the first is kept so that no other gets its id

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta and threading.get_ident() == thread:
            if id(parameter) not in moved:
                on_meta = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
                moved[id(parameter)] = (parameter, on_meta)
            parameter = moved[id(parameter)][1]
        own(module, name, parameter)

    nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = own  # type: ignore[method-assign]


class _Building(TorchFunctionMode):
    """What torch does while a model is built of which some tensors are without values.

    They are left alone, as to fill them changes nothing, but imports torch's compiler. They call themselves tensors of
    the CPU, where libraries then compute their tables. What is computed from them has no values either.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            if name.endswith("_") and not name.startswith("_"):
                return args[0]
            if name == "__setitem__":
                return None
            if func == _GET_DEVICE:
                return torch.device("cpu")
        things = () if name.endswith("_") else leaves((args, kwargs))  # a real tensor must not take what isn't there
        if any(isinstance(thing, Tensor) and thing.is_meta for thing in things):
            args, kwargs = substitute((args, kwargs), lambda one: one.to("meta") if isinstance(one, Tensor) else one)
        return func(*args, **kwargs)
