"""raysnap: fine-tune a population of image models on Ray, keep every shared block once, search for the best start."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysnap import search
    from raysnap.search import SearchResult

__all__ = ["SearchResult", "search"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    package = import_module("raysnap.search")
    return package if name == "search" else getattr(package, name)
