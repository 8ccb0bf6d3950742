"""Which stored snapshots are the best start for a dataset: candidates share every block that runs."""

from raysnap.search.ranking import search
from raysnap.search.result import RankedSnapshot, SearchResult, SkippedSnapshot

__all__ = ["RankedSnapshot", "SearchResult", "SkippedSnapshot", "search"]
