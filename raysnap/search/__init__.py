"""Find which stored snapshots are the best start for a dataset; a block that candidates share runs once.

The names below are imported on first use; none needs torch before its first call.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raysnap.search.ranking import search
    from raysnap.search.result import RankedSnapshot, SearchResult, SkippedSnapshot

__all__ = ["RankedSnapshot", "SearchResult", "SkippedSnapshot", "search"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(f"{__name__}.{'ranking' if name == 'search' else 'result'}"), name)
    return found
