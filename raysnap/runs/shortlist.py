"""What a finetune chose to start from, as `shortlist.json` of its run keeps it, and what came of each start."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from raysnap.atomic import write_atomically
from raysnap.config.choices import Role
from raysnap.errors import DataError
from raysnap.humanize import plural
from raysnap.runs.json_fields import mapping, number, sequence, text, whole
from raysnap.runs.trial_rows import TrialRow, merit_order

SHORTLIST_NAME = "shortlist.json"
SEARCH_NAME = "search.json"
MODEL_NAME = "model.json"
"""The kept model: its `name` in the store and its `snapshot`; written last."""

TRAINING_DIR = "training"


@dataclass(frozen=True)
class ShortlistedStart:
    """A snapshot to start from, and what the search said of it; of one that was named, no search said anything.

    Attributes:
        dataset, retrain_index: what it was trained on, and how many of its blocks were.
        rank, score, low, high, num_train, num_test, num_scored, is_tied, standing, num_datasets, is_trained_on_it: as
            in a search's ranking.
        is_base: whether its weights below the head were fine-tuned from no others: what is taken without a search.
    """

    snapshot: str
    name: str
    architecture: str
    image_size: int
    dataset: str | None = None
    retrain_index: int | None = None
    rank: int | None = None
    score: float | None = None
    low: float | None = None
    high: float | None = None
    num_train: int | None = None
    num_test: int | None = None
    num_scored: int | None = None
    is_tied: bool = False
    standing: float | None = None
    num_datasets: int | None = None
    is_trained_on_it: bool = False
    is_base: bool = False

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Self:
        """Return a start of a file."""
        return cls(
            snapshot=str(row.get("snapshot")),
            name=text(row.get("name")) or str(row.get("snapshot"))[:12],
            architecture=text(row.get("architecture")) or "unknown",
            image_size=whole(row.get("image_size")) or 0,
            dataset=text(row.get("dataset")),
            is_tied=row.get("is_tied") is True,
            is_trained_on_it=row.get("is_trained_on_it") is True,
            is_base=row.get("is_base") is True,
            retrain_index=whole(row.get("retrain_index")),
            rank=whole(row.get("rank")),
            score=number(row.get("score")),
            low=number(row.get("low")),
            high=number(row.get("high")),
            num_train=whole(row.get("num_train")),
            num_test=whole(row.get("num_test")),
            num_scored=whole(row.get("num_scored")),
            standing=number(row.get("standing")),
            num_datasets=whole(row.get("num_datasets")),
        )


def take_starts(starts: Sequence[ShortlistedStart], num_starts: int) -> tuple[ShortlistedStart, ...]:
    """Return the first of these starts, the last of them a base: the best base that there is, unless one is before it.

    What is fine-tuned is then compared with a plain fine-tune of a base, and is kept only if it is better. One start
    alone is the first.
    """
    taken = tuple(starts[:num_starts])
    if num_starts < 2 or any(start.is_base for start in taken):
        return taken
    return taken[: num_starts - 1] + tuple([start for start in starts if start.is_base][:1] or taken[num_starts - 1 :])


OVERRUN = 2.0


@dataclass(frozen=True)
class TimePlan:
    """How a time budget was divided, in seconds.

    Attributes:
        search_s: what the search might take; `searched_s` what it took.
        reserve_s: kept for starting Ray, storing and reporting.
        training_s: what was left for training.
        forecast_s: what training was forecast to take with the chosen starts and epochs.
    """

    budget_s: float
    search_s: float
    searched_s: float
    reserve_s: float
    training_s: float
    forecast_s: float

    @property
    def is_short(self) -> bool:
        """Whether even the least training is forecast to take longer than there is time."""
        return self.forecast_s > self.training_s

    @property
    def stop_s(self) -> float:
        """When training is stopped: later than planned where time is short, so that an epoch ends and can be kept."""
        return max(self.training_s, OVERRUN * self.forecast_s) if self.is_short else self.training_s


_TIMES = tuple(one.name for one in fields(TimePlan))


@dataclass(frozen=True)
class Shortlist:
    """The starts that a finetune trains from, best first, and for how many epochs.

    Attributes:
        method, proxy, num_candidates, expected_loss: of the search; None where the starts were named.
        records_share: of the search's ranks that came from records.
        epochs: of each fine-tune, at most.
        time: how the time budget was divided; None without one.
        recipes: the preset whose recipes were tried in place of the configuration's own, to fit the time.
    """

    starts: tuple[ShortlistedStart, ...]
    epochs: int
    method: str | None = None
    proxy: str | None = None
    num_candidates: int | None = None
    expected_loss: float | None = None
    records_share: float = 0.0
    time: TimePlan | None = None
    recipes: str | None = None

    @classmethod
    def read(cls, run_dir: Path) -> Self | None:
        """Return the shortlist of a run; None where it has none yet.

        Raises:
            DataError: the file holds something else.
        """
        path = run_dir / SHORTLIST_NAME
        try:
            document = mapping(json.loads(path.read_text("utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(
                f"{path}: expected a finetune's shortlist, found a file that can't be read: {error}"
            ) from None
        starts = tuple(ShortlistedStart.read(mapping(row)) for row in sequence(document.get("starts")))
        epochs, time = whole(document.get("epochs")), mapping(document.get("time"))
        if not starts or epochs is None:
            raise DataError(f"{path}: expected a finetune's shortlist with starts and epochs, found none")
        return cls(
            starts=starts,
            epochs=epochs,
            method=text(document.get("method")),
            proxy=text(document.get("proxy")),
            num_candidates=whole(document.get("num_candidates")),
            expected_loss=number(document.get("expected_loss")),
            records_share=number(document.get("records_share")) or 0.0,
            time=TimePlan(**{key: number(time.get(key)) or 0.0 for key in _TIMES}) if time else None,
            recipes=text(document.get("recipes")),
        )

    def write(self, run_dir: Path) -> None:
        """Write the shortlist into a run directory, whole."""
        write_atomically(run_dir / SHORTLIST_NAME, json.dumps(asdict(self), indent=2, allow_nan=False) + "\n")

    @property
    def is_searched(self) -> bool:
        """Whether a search chose the starts."""
        return self.method is not None


@dataclass(frozen=True)
class StartResult:
    """What came of one start.

    Attributes:
        trial: its best fine-tune, one that was trained to its end if there is any; None where none reported an epoch.
        num_trials: how many of its fine-tunes have ended.
    """

    start: ShortlistedStart
    trial: TrialRow | None
    num_trials: int

    @property
    def val_accuracy(self) -> float | None:
        """Validation accuracy of the best fine-tune."""
        return self.trial.val_accuracy if self.trial else None

    @property
    def test_accuracy(self) -> float | None:
        """Test accuracy of the best fine-tune; known of those that were trained to their end."""
        return self.trial.test_accuracy if self.trial else None


def expected_text(expected_loss: float | None) -> str:
    """Say what taking a search's first start was expected to lose; nothing where that is unknown."""
    if expected_loss is None:
        return ""
    amount = "less than 0.001" if expected_loss < 0.001 else f"{expected_loss:.3f}"
    return f"; by the scores alone, taking it was expected to lose {amount}"


def first_start_text(starts: Sequence[tuple[int, str, float, float]], expected_loss: float | None) -> str:
    """Say how the search's first start compares with the others that were trained to their end; nothing of one alone.

    Args:
        starts: each one's rank in the search, name, validation and test accuracy.
    """
    if len(starts) < 2:
        return ""
    _, name, val_accuracy, test_accuracy = min(starts)
    expected = expected_text(expected_loss)
    best = max(val for _, _, val, _ in starts)
    num_equal = sum(val == best for _, _, val, _ in starts) - 1
    if val_accuracy == best:
        tied = f", with {plural(num_equal, 'other')} equally good" if num_equal else ""
        return f"By validation, the search's first start was the best of the shortlist{tied}{expected}."
    gap = max(test for _, _, val, test in starts if val == best) - test_accuracy
    return (
        f"The search's first start, {name}, came to a test accuracy {abs(gap):.3f} {'below' if gap >= 0 else 'above'} "
        f"that of the best by validation{expected}."
    )


def base_text(base: str, base_accuracy: float, kept_accuracy: float) -> str:
    """Say how the kept model compares with the best fine-tune of a base, by test accuracy."""
    gain = kept_accuracy - base_accuracy
    compared = f"{abs(gain):.3f} {'below' if gain > 0 else 'above'}" if round(gain, 3) else "the same as"
    return f"Without a search, a fine-tune of the base {base} came to {base_accuracy:.3f}: {compared} the kept model's"


def results_of(shortlist: Shortlist, trials: Iterable[TrialRow], *, is_max: bool = True) -> tuple[StartResult, ...]:
    """Return what came of each start, in the shortlist's order."""
    by_start: dict[str, list[TrialRow]] = {start.snapshot: [] for start in shortlist.starts}
    names = {start.name: start.snapshot for start in shortlist.starts}
    for trial in trials:
        snapshot = names.get(str(trial.point.get("base.weights")))
        if snapshot is not None and trial.role == Role.FINETUNE:
            by_start[snapshot].append(trial)

    def order(trial: TrialRow) -> tuple[bool, tuple[float, float, str]]:
        value = trial.objective if trial.objective is not None else trial.val_accuracy
        assert value is not None  # of a trial that ended
        return not trial.is_done, merit_order(value, trial.metrics, trial.trial, is_max=is_max)

    results = []
    for start in shortlist.starts:
        ended = [trial for trial in by_start[start.snapshot] if trial.val_accuracy is not None]
        best = min(ended, key=order, default=None)
        results.append(StartResult(start, best, len(by_start[start.snapshot])))
    return tuple(results)
