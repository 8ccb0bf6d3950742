"""What share of a GPU each trial takes, learnt from the peak memory of the first trial of its kind."""

from __future__ import annotations

import math
from collections.abc import Hashable

from raysnap.training.trial import Trial

# Of the measured peak: equal trials differ by what their allocator could not use. Shares are whole hundredths, so that
# similar trials have equal ones and take over each other's processes.
MARGIN_PERCENT = 110

# Settings that change how much memory a step takes, other than whether weights are averaged or images mixed.
_SETTINGS = ("batch_size", "micro_batch_size", "optimizer", "precision", "channels_last", "compile", "views")


class GpuShares:
    """The shares that trials take of GPUs; a trial that measures for its kind has a GPU of its own.

    One with fewer trained blocks needs no more memory than one of its kind with more, so the larger share serves both.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, dict[float, float]] = {}
        self._measuring: dict[str, Hashable] = {}
        self._ran_out: set[str] = set()

    def share(self, trial: Trial) -> float | None:
        """Return the share that the trial takes, 1 where it has to measure; None while another measures its kind."""
        if trial.id in self._ran_out:
            return 1.0
        kind, depth = _kind(trial), _depth(trial)
        fitting = [share for trained, share in self._known.get(kind, {}).items() if trained >= depth]
        if fitting:
            return min(fitting)
        return None if kind in self._measuring.values() else 1.0

    def start(self, trial: Trial) -> None:
        """Take note that a trial starts; where its kind is unknown, it measures it."""
        if _kind(trial) not in self._known or self.share(trial) == 1.0:
            self._measuring[trial.id] = _kind(trial)

    def learn(self, trial: Trial, peak_bytes: int, gpu_bytes: int) -> None:
        """Take the most memory that a trial has needed so far, of a GPU with this much, both in bytes."""
        share = min(100, -(-peak_bytes * MARGIN_PERCENT // gpu_bytes)) / 100
        known = self._known.setdefault(_kind(trial), {})
        known[_depth(trial)] = max(share, known.get(_depth(trial), 0.0))
        self._measuring.pop(trial.id, None)

    def end(self, trial: Trial) -> None:
        """Take note that a trial ended; where it measured nothing, the next of its kind does."""
        self._measuring.pop(trial.id, None)
        self._ran_out.discard(trial.id)

    def run_out(self, trial: Trial) -> None:
        """Give a trial that ran out of memory a GPU of its own next, and larger shares to its kind."""
        self._measuring.pop(trial.id, None)
        self._ran_out.add(trial.id)
        known = self._known.get(_kind(trial), {})
        for trained, share in known.items():
            known[trained] = min(1.0, 2 * share)


def _kind(trial: Trial) -> Hashable:
    """Return what trials have in common that need about the same memory, but for how many blocks they train."""
    train = trial.train
    settings = tuple(getattr(train, name) for name in _SETTINGS)
    return (trial.architecture, trial.image_size, *settings, train.ema_decay is None, train.is_mixing)


def _depth(trial: Trial) -> float:
    """Return how many body blocks are trained; infinity where all are, the stem included."""
    return math.inf if trial.retrain_index is None else trial.retrain_index
