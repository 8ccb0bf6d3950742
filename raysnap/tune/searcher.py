"""The searcher that asks for each next point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from raysnap.training.trial import Trial


class AskTellSearcher(Searcher):
    """Makes a sweep's trials one by one, from what somebody who is told all results suggests.

    Args:
        waiting: trials that were suggested before and have not ended; they come first.
        suggest: makes the next trial; None when there is none.
        tell: takes a trial's id and what its metric came to, None where it came to nothing.
    """

    def __init__(
        self,
        metric: str,
        mode: str,
        waiting: list[Trial],
        suggest: Callable[[], Trial | None],
        tell: Callable[[str, float | None], None],
    ):
        super().__init__(metric=metric, mode=mode)
        self._waiting = list(waiting)
        self._suggest = suggest
        self._tell = tell
        self._ids: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next trial as Tune takes it."""
        trial = self._waiting.pop(0) if self._waiting else self._suggest()
        if trial is None:
            return Searcher.FINISHED
        self._ids[trial_id] = trial.id
        return {"trial": trial.model_dump(mode="json")}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Passes on what became of a trial."""
        value = None if error or not result or result.get("error") else result.get(self.metric)
        self._tell(self._ids[trial_id], value)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a sweep that goes on knows all from its rows."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, for the same reason."""
