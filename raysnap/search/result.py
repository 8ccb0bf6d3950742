"""The answer of a search: a ranking, how sure it is, and what it cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RankedSnapshot:
    """One line of a ranking.

    Attributes:
        snapshot: the snapshot's id.
        name: its name for people.
        score: the proxy's score at the last rung the snapshot was in, over `num_train` and `num_test` items.
        tied_with_best: whether the test items can't tell it from the best (the best is tied with itself).
    """

    rank: int
    snapshot: str
    name: str
    score: float
    num_train: int
    num_test: int
    tied_with_best: bool


@dataclass(frozen=True)
class SkippedSnapshot:
    """A candidate that could not be scored, and why."""

    snapshot: str
    name: str
    error: str


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        timings_s: seconds: `total` and its parts `plan`, `load_blocks`, `decode`, `inference`, `proxy`.
        bound_s: what the same passes, bytes and decoding take at the best speeds that were seen: see `search.pace`.
        precision: what blocks computed in, such as `bfloat16`.
        work: `block_item_passes`, `flops`, `block_bytes_read`, `images_decoded`.
        peak_activation_bytes: the most bytes of activations that were held at once.
    """

    method: str
    proxy: str
    dataset: str
    num_candidates: int
    ranking: tuple[RankedSnapshot, ...]
    timings_s: dict[str, float]
    work: dict[str, int]
    bound_s: float
    precision: str
    peak_activation_bytes: int
    skipped: tuple[SkippedSnapshot, ...]

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values, in the form that `raysnap search --json` prints."""
        return asdict(self)

    def to_pandas(self) -> pd.DataFrame:
        """The ranking as a data frame, a row per snapshot, best first."""
        import pandas as pd

        return pd.DataFrame([asdict(entry) for entry in self.ranking])
