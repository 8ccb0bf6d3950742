"""A Tune searcher that asks a function for each next trial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from raysnap.training.trial import Trial


class AskTellSearcher(Searcher):
    """Suggests a sweep's trials one by one, through a function that learns all results.

    Args:
        waiting: trials that were suggested earlier and have not ended; they come first.
        suggest: returns the next trial; None when there is none.
        tell: takes a trial's id and its metric, None where it has none.
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

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override] # FINISHED is text, says Ray
        """Return the next trial as Tune expects it."""
        trial = self._waiting.pop(0) if self._waiting else self._suggest()
        if trial is None:
            return Searcher.FINISHED
        self._ids[trial_id] = trial.id
        return {"trial": trial.model_dump(mode="json")}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass a trial's metric on."""
        value = None if error or not result or result.get("error") else result.get(self.metric)
        self._tell(self._ids[trial_id], value)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: a resumed sweep reads its rows."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing, for the same reason."""
