"""What share of a GPU each trial takes, learnt from the peak memory of the first trial of its kind."""

from __future__ import annotations

import math
from collections.abc import Hashable

from raysnap.cluster.gpu_room import trials_per_gpu
from raysnap.training.trial import Trial

RAY_PARTS = 10_000  # of a GPU, which Ray counts in

# Settings that change how much memory a step takes, other than whether weights are averaged or images mixed.
_SETTINGS = ("batch_size", "micro_batch_size", "optimizer", "precision", "channels_last", "compile", "views")


class GpuShares:
    """The shares that trials take of GPUs; a trial that measures for its kind has a GPU of its own.

    One with fewer trained blocks needs no more memory than one of its kind with more, so the larger share serves both.
    Shares are an integer part of a GPU, a half, a third and so on: they fill it, and as many kinds have the same share,
    trials take over each other's processes.
    """

    def __init__(self) -> None:
        self._per_gpu: dict[Hashable, dict[float, int]] = {}
        self._measuring: dict[str, Hashable] = {}
        self._ran_out: set[str] = set()

    def share(self, trial: Trial) -> float | None:
        """Return the share that the trial takes, 1 where it has to measure; None while another measures its kind."""
        if trial.id in self._ran_out:
            return 1.0
        kind, depth = _kind(trial), _depth(trial)
        fitting = [number for trained, number in self._per_gpu.get(kind, {}).items() if trained >= depth]
        if fitting:
            return RAY_PARTS // max(fitting) / RAY_PARTS
        return None if kind in self._measuring.values() else 1.0

    def start(self, trial: Trial) -> None:
        """Take note that a trial starts; where its kind is unknown, it measures it."""
        if _kind(trial) not in self._per_gpu or self.share(trial) == 1.0:
            self._measuring[trial.id] = _kind(trial)

    def learn(self, trial: Trial, peak_bytes: int, gpu_bytes: int) -> None:
        """Take the most memory that a trial has needed so far, of a GPU with this much, both in bytes."""
        number = min(RAY_PARTS, trials_per_gpu(peak_bytes, gpu_bytes))
        known = self._per_gpu.setdefault(_kind(trial), {})
        known[_depth(trial)] = min(number, known.get(_depth(trial), number))
        self._measuring.pop(trial.id, None)

    def end(self, trial: Trial) -> None:
        """Take note that a trial ended; where it measured nothing, the next of its kind does."""
        self._measuring.pop(trial.id, None)
        self._ran_out.discard(trial.id)

    def run_out(self, trial: Trial) -> None:
        """Give a trial that ran out of memory a GPU of its own next, and larger shares to its kind."""
        self._measuring.pop(trial.id, None)
        self._ran_out.add(trial.id)
        known = self._per_gpu.get(_kind(trial), {})
        for trained, number in known.items():
            known[trained] = max(1, number // 2)


def _kind(trial: Trial) -> Hashable:
    """Return what trials have in common that need about the same memory, but for how many blocks they train."""
    train = trial.train
    settings = tuple(getattr(train, name) for name in _SETTINGS)
    return (trial.architecture, trial.image_size, *settings, train.ema_decay is None, train.is_mixing)


def _depth(trial: Trial) -> float:
    """Return how many body blocks are trained; infinity where all are, the stem included."""
    return math.inf if trial.retrain_index is None else trial.retrain_index
