"""Hands a job's trials to Tune one by one: those that wait, then those that follow from the results of others.

Tune gives the process of a trial that ended to any trial that waits, and throws that one's own starting process away.
With a whole list waiting, processes that take longer to start than a trial takes never come to work. So no more trials
are handed out than can run at once: one that ends makes room for one, and that one gets its process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any

from ray.tune.search import Searcher

from raysnap.training.trial import Trial
from raysnap.tune.options import Suggestions
from raysnap.tune.slots import Share, Slots

MAX_PASSED_OVER = 100  # trials whose kind is being measured; those after them wait, too


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
        self._latest_share: Share = {}
        self._running: dict[str, tuple[Trial, Share]] = {}
        self.num_given = 0  # trials handed out, in all experiments
        self.is_exhausted = False  # whether there was no further trial when Tune last asked

    def __getstate__(self) -> dict[str, Any]:
        return {}

    @property
    def num_running(self) -> int:
        """How many trials were handed out and have not ended."""
        return len(self._running)

    def has_next(self) -> bool:
        """Return whether there is a further trial."""
        if not self._waiting and self._suggestions is not None:
            suggested = self._suggestions.suggest()
            if suggested is not None:
                self._waiting.append(suggested)
        return bool(self._waiting)

    def put_back(self, trial: Trial) -> None:
        """Take a trial back that Tune gave up, to hand it out again before the others."""
        self._waiting.appendleft(trial)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override] # FINISHED is text, says Ray
        """Return the next trial and its share as Tune expects them; None while there is no room for it."""
        # A suggestion is asked for only when there is room, so that it follows from all results before.
        if self._running and not self._waiting and not self._slots.has_room(self._latest_share):
            return None
        self.is_exhausted = not self.has_next()
        if self.is_exhausted:
            return Searcher.FINISHED
        found = self._next()
        if found is None:
            return None
        trial, share = found
        self._waiting.remove(trial)
        self._running[trial_id] = found
        self.num_given += 1
        self._latest_share = share
        self._slots.take(trial, share)
        return {"trial": trial.model_dump(mode="json"), "share": dict(share)}

    def _next(self) -> tuple[Trial, Share] | None:
        """Return the first trial that need not wait for a measurement, and its share; None where it has to wait."""
        for trial in islice(self._waiting, MAX_PASSED_OVER):
            share = self._slots.share(trial)
            if share is not None:
                return (trial, share) if not self._running or self._slots.has_room(share) else None
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Make room for another trial, and pass this one's metric on; one that ran out of memory may come again."""
        trial, share = self._running.pop(trial_id)
        comes_again = self._slots.gives_more(share, result)
        self._slots.free(trial, ran_out=comes_again)
        if comes_again:
            self._waiting.appendleft(trial)
        elif self._suggestions is not None:
            value = None if error or not result or result.get("error") else result.get(self._suggestions.metric)
            self._suggestions.tell(trial.id, value)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: a resumed job reads its rows."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing, for the same reason."""
