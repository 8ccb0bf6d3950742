"""The result of a search: a ranking, its statistical ties, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from raysnap.config.choices import AskedMethod, Method, Proxy, StopReason
from raysnap.datasets.layout.account import Account
from raysnap.search.plan.forecast import Forecast

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RankedSnapshot:
    """One line of a ranking.

    Attributes:
        snapshot: the snapshot's id.
        name: the name that people know it by.
        score: the proxy's score at the last rung the snapshot was in, with `num_train` and `num_test` items.
        tied_with_best: whether it is statistically tied with the best at the last rung that both were in, where that
            was the last of all or used all test items; the best is tied with itself.
        within_tolerance: whether it is as good as the best on new items, as far as is known: at the last rung that both
            were in, its expected score was at most the tolerance lower.
        low, high: the score's 95 % interval, by the luck of the `num_scored` items that it rests on. Scores on
            different numbers of items are not comparable.
        proxy_rank: the rank by the proxy alone; ties and tolerance are judged against the first of that.
        standing: the place among starts that records of other datasets let expect, from 0 for the worst to 1; None
            where the store has no records of other datasets.
        num_datasets: on how many other datasets it has been fine-tuned.
        dataset, retrain_index: what it was trained on, and how many of its blocks were.
        is_trained_on_it: whether that is the very dataset asked about.
    """

    rank: int
    snapshot: str
    name: str
    score: float
    num_train: int
    num_test: int
    tied_with_best: bool
    within_tolerance: bool
    low: float = math.nan
    high: float = math.nan
    num_scored: int = 0
    proxy_rank: int = 0
    standing: float | None = None
    num_datasets: int = 0
    architecture: str = ""
    dataset: str | None = None
    retrain_index: int | None = None
    is_trained_on_it: bool = False


@dataclass(frozen=True)
class RecordsUsed:
    """What the store's records of fine-tunes on other datasets had to say in a ranking.

    Attributes:
        share: of the rank that came from them; the rest came from the proxy.
    """

    share: float
    num_records: int
    num_datasets: int


@dataclass(frozen=True)
class SkippedSnapshot:
    """A candidate that could not be scored, and why."""

    snapshot: str
    name: str
    error: str


@dataclass(frozen=True)
class RungReport:
    """What one rung did.

    Attributes:
        num_train: train items of its probes, those of earlier rungs included; likewise `num_test`.
        num_candidates: how many candidates entered it.
        num_kept: how many it kept.
        expected_loss: what naming its best candidate was expected to lose: see `SearchResult`.
        block_item_passes, flops, block_bytes_read: the work it took.
        total_s: seconds it took.
    """

    num_train: int
    num_test: int
    num_candidates: int
    num_kept: int
    expected_loss: float | None
    block_item_passes: int
    flops: int
    block_bytes_read: int
    total_s: float


@dataclass(frozen=True)
class GroupNarrowing:
    """Snapshots of one kind, and how many of them were left out.

    Attributes:
        input: their architecture, and the edge of its images in pixels.
        root: the name of the snapshot that their line of fine-tunes begins with.
        dataset: what they were trained on; None where that is unknown.
        depth: how many quarters of their blocks were retrained, rounded up.
    """

    input: str
    root: str
    dataset: str | None
    depth: int
    num_candidates: int
    num_left_out: int


@dataclass(frozen=True)
class Narrowing:
    """What a search did not try of the snapshots that matched, and what that may cost.

    Attributes:
        num_candidates: how many matched.
        num_tried: how many were tried; any that differs from one of these in its head only is ranked with it.
        num_left_out: how many are neither.
        expected_loss: by how much the best of those left out is expected to score above the one ranked first, judging
            by the scores of its relatives; None where nothing was scored.
        groups: the kinds of snapshots, those with the most left out first.
    """

    num_candidates: int
    num_tried: int
    num_left_out: int
    expected_loss: float | None
    groups: tuple[GroupNarrowing, ...]


@dataclass(frozen=True)
class InputGroup:
    """Candidates that see items in the same way: how, as in a `Preprocessing`, and how many they are.

    Of those that see texts, `image_size` is the number of tokens, and all else but `text` is None.
    """

    image_size: int
    resize_size: int | None
    resize_mode: str | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    interpolation: str | None
    num_candidates: int
    text: str


@dataclass(frozen=True)
class ForecastReport:
    """What was forecast before the search ran, and what came.

    Attributes:
        asked: the method asked for.
        reason: why the result's method, and its number of items, were taken.
        methods: what each method that was considered would take with these items.
        came: what the method taken took, in the same form.
    """

    asked: AskedMethod
    reason: str
    methods: tuple[Forecast, ...]
    came: Forecast


@dataclass(frozen=True)
class Gain:
    """By how much the first of a ranking scores above the no-search baseline, on the items that both were scored on.

    Attributes:
        low, high: its 95 % interval, by the luck of the `num_scored` items.
    """

    value: float
    low: float
    high: float
    num_scored: int


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    >>> result = raysnap.rank_snapshots("store", "shapes-shape-a")
    >>> sorted(set(result.to_pandas()["architecture"]))
    ['mobilenet_v3_small']

    Attributes:
        method: the method taken, where `auto` was asked for too.
        timings_s: seconds: `total` and its parts `plan`, `load_blocks`, `decode`, `inference`, `proxy`; of workers the
            mean, and `start_workers`. The total counts from the call; that of `raysnap search` from the start of its
            process, with `start` as the part before the call.
        bound_s: seconds that the same passes, bytes and decoding take at the best speeds seen: see `engine.pace`.
        precision: what blocks computed in, such as `bfloat16`.
        work: `block_item_passes`, `flops`, `block_bytes_read`, `images_decoded`.
        peak_activation_bytes: the most bytes of activations held at once.
        peak_memory_bytes: the most bytes of blocks, activations, features and pixels at once, by the plan.
        expected_loss: how much better than the winner the best candidate is expected to be on new items, in accuracy,
            or for a proxy that is no accuracy as a part of the candidates' range; None where the method drops
            candidates whatever that costs.
        stopped: why the search ended: `tolerance`, the expected loss was within it; `no_gain`, it was not, but more
            items would not have paid; `all_items`, all were used; `time_budget`, there was no time for more.
        rungs: what each rung did.
        num_candidates: how many snapshots were tried.
        forecast: what was forecast, and what came.
        static_baseline: rank of the no-search baseline, the largest base snapshot; None if nothing was ranked.
        gain: of the first over that baseline, in accuracy; None where they are one, or the proxy is no accuracy.
        data: what was read of the dataset and what was not; of bad images those that the search met.
        narrowing: what was left out, where more snapshots matched than `max_candidates`.
        records: what came of fine-tunes on other datasets, and how much of the rank; None without such records.
        inputs: how candidates saw images, the most common way first; those of different groups share no blocks.
        even_image_size: the `image_size` with which all candidates would see images in the same way; None where they
            do already, or no size makes them.
        answered: when an earlier search answered the same question, in UTC; its ranking, rungs and forecast are these.
            None where this search ran.
    """

    method: Method
    proxy: Proxy
    dataset: str
    num_candidates: int
    ranking: tuple[RankedSnapshot, ...]
    timings_s: dict[str, float]
    work: dict[str, int]
    bound_s: float
    precision: str
    peak_activation_bytes: int
    peak_memory_bytes: int
    skipped: tuple[SkippedSnapshot, ...]
    expected_loss: float | None
    stopped: StopReason
    rungs: tuple[RungReport, ...]
    forecast: ForecastReport
    static_baseline: RankedSnapshot | None
    data: Account
    narrowing: Narrowing | None = None
    records: RecordsUsed | None = None
    inputs: tuple[InputGroup, ...] = ()
    even_image_size: int | None = None
    gain: Gain | None = None
    answered: str | None = None

    def found_again(self, timings_s: Mapping[str, float]) -> SearchResult:
        """Return what an earlier search found, as the result of one that took these times and computed nothing."""
        return replace(
            self,
            timings_s=dict.fromkeys(self.timings_s, 0.0) | dict(timings_s),
            work=dict.fromkeys(self.work, 0),
            bound_s=0.0,
            peak_activation_bytes=0,
            peak_memory_bytes=0,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values, in the form that `raysnap search --json` prints."""
        return asdict(self)

    def to_pandas(self) -> pd.DataFrame:
        """Return the ranking as a data frame, a row per snapshot, best first."""
        import pandas as pd

        columns = [field.name for field in fields(RankedSnapshot)]
        return pd.DataFrame([asdict(entry) for entry in self.ranking], columns=columns)
