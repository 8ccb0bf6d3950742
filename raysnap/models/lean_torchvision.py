"""torchvision, imported without torch's compiler.

torchvision imports `torch._dynamo`, and with that inductor and sympy, for one function that only detection models call:
more than half of the time that a search takes to start. Here that function imports what it needs when it is called.
Modules that need torchvision import it from here; where it is imported already, nothing is done.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo.utils"


def is_compile_supported(device_type: Any) -> Any:
    """Return what torch's own function of this name returns."""
    return import_module(COMPILER).is_compile_supported(device_type)


is_compile_supported._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as torch marks its own


class _Postponed(ModuleType):
    """The compiler's module while torchvision is imported; anything else in it is taken from the real one."""

    is_compile_supported = staticmethod(is_compile_supported)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked for by imports themselves
            raise AttributeError(name)
        _withdraw(self)
        return getattr(import_module(COMPILER), name)


def _withdraw(module: _Postponed) -> None:
    if sys.modules.get(COMPILER) is module:
        del sys.modules[COMPILER]


@contextmanager
def _without_compiler() -> Iterator[None]:
    module = _Postponed(COMPILER)
    sys.modules.setdefault(COMPILER, module)
    try:
        yield
    finally:
        _withdraw(module)


with _without_compiler():
    from torchvision import models, ops

__all__ = ["models", "ops"]
