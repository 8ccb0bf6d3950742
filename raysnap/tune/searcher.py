"""Hands a job's trials to Tune one by one: those that wait, then those that follow from the results of others.

Tune gives the process of a trial that ended to any trial that waits, and throws that one's own starting process away.
With a whole list waiting, processes that take longer to start than a trial takes never come to work. So no more trials
are handed out than can run at once: one that ends makes room for one, and that one gets its process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from ray.tune.search import Searcher

from raysnap.training.trial import Trial
from raysnap.tune.options import Suggestions
from raysnap.tune.slots import Slots


class TrialFeed(Searcher):
    """Tune's searcher of a job; one instance serves any number of experiments, one after the other.

    Args:
        trials: the trials that wait, in order.
        suggestions: where further trials come from, and where results go.
    """

    def __init__(self, trials: Sequence[Trial], slots: Slots, suggestions: Suggestions | None = None):
        super().__init__()
        self._waiting = deque(trials)
        self._slots = slots
        self._suggestions = suggestions
        self._running: dict[str, str] = {}
        self._latest_share: Mapping[str, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    @property
    def num_running(self) -> int:
        """How many trials were handed out and have not ended."""
        return len(self._running)

    @property
    def num_slots(self) -> int:
        """How many trials like the next one may run at once."""
        return self._slots.num(self._slots.share(self._waiting[0]) if self._waiting else self._latest_share)

    def has_next(self) -> bool:
        """Return whether there is a further trial."""
        if not self._waiting and self._suggestions is not None:
            suggested = self._suggestions.suggest()
            if suggested is not None:
                self._waiting.append(suggested)
        return bool(self._waiting)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override] # FINISHED is text, says Ray
        """Return the next trial and its share as Tune expects them; None while there is no slot for it."""
        # A suggestion is asked for only when there is a slot, so that it follows from all results before.
        if self._running and self.num_running >= self.num_slots:
            return None
        if not self.has_next():
            return Searcher.FINISHED
        trial = self._waiting.popleft()
        self._running[trial_id] = trial.id
        self._latest_share = self._slots.share(trial)
        return {"trial": trial.model_dump(mode="json"), "share": dict(self._latest_share)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Make room for another trial, and pass this one's metric on."""
        name = self._running.pop(trial_id)
        if self._suggestions is not None:
            value = None if error or not result or result.get("error") else result.get(self._suggestions.metric)
            self._suggestions.tell(name, value)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: a resumed job reads its rows."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing, for the same reason."""
