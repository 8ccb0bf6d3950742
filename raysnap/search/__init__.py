"""Which stored snapshots are the best start for a dataset: candidates share every block that runs.

`raysnap.search(store, data)` is `raysnap.search.search(store, data)`: the package can be called. What it offers is
imported when it is asked for, as it needs torch and planning does not.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysnap.search.ranking import search
    from raysnap.search.result import RankedSnapshot, SearchResult, SkippedSnapshot

__all__ = ["RankedSnapshot", "SearchResult", "SkippedSnapshot", "search"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'ranking' if name == 'search' else 'result'}"), name)


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> "SearchResult":
        return self.search(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
