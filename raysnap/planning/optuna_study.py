"""Optuna as the one who chooses: it is told every trial's result and asked for the next point, conditions and all.

What it chooses hangs on which trials end first. So its trials can't be listed beforehand: each is written to
`trials.jsonl` when it is suggested, and a sweep that goes on tells a new study all that its rows know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from raysnap.config.space_entry import SpaceEntry
from raysnap.config.sweep import SweepConfig
from raysnap.planning.points import Point, own_values, resolve, search_order, space_of
from raysnap.training.trial import Trial, derive_seed


class Study:
    """Suggests a sweep's trials, numbered on from those there are.

    Args:
        make: the trial at a point, by its number.
        before: trials that an earlier study suggested.
        objectives: what those that ended came to, by their ids.
    """

    def __init__(
        self,
        config: SweepConfig,
        num_trials: int,
        make: Callable[[Point, int], Trial],
        before: Sequence[Trial] = (),
        objectives: Mapping[str, float] = MappingProxyType({}),
    ):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._config = config
        self._space = space_of(config)
        self._order = search_order(self._space)
        self._num_trials = num_trials
        self._make = make
        self._study = optuna.create_study(
            direction="maximize" if config.mode == "max" else "minimize",
            sampler=optuna.samplers.TPESampler(seed=derive_seed(config.seed, "optuna", len(before)) % 2**31),
        )
        self._asked: dict[str, Any] = {}
        self.trials = list(before)
        for trial in before:
            self._study.enqueue_trial(self._choices(trial.point))
            self._asked[trial.id] = asked = self._study.ask()
            self._resolve(asked)
            if trial.id in objectives:
                self.tell(trial.id, objectives[trial.id])

    def suggest(self) -> Trial | None:
        """The next trial; None when there are as many as were wanted."""
        if len(self.trials) >= self._num_trials:
            return None
        asked = self._study.ask()
        trial = self._make(Point(*self._resolve(asked), sample=1), len(self.trials) + 1)
        self._asked[trial.id] = asked
        self.trials.append(trial)
        return trial

    def tell(self, trial_id: str, objective: float | None) -> None:
        """What a trial came to; None where it came to nothing."""
        import optuna

        asked = self._asked.pop(trial_id, None)
        if asked is None:
            return
        failed = optuna.trial.TrialState.FAIL
        self._study.tell(asked, objective, **({"state": failed} if objective is None else {}))

    def _resolve(self, asked: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The values of all keys that hold, as one of Optuna's trials suggests them, and how they are shown."""

        def choose(key: str, entry: SpaceEntry) -> Any:
            name = self._name(key, entry)
            if entry.options is not None:
                return asked.suggest_categorical(name, list(entry.options))
            low, high = entry.bounds
            if entry.randint is not None:
                return asked.suggest_int(name, low, high)
            return asked.suggest_float(name, low, high, log=entry.loguniform is not None)

        return resolve(self._space, self._order, choose, own_values(self._config))

    def _choices(self, shown: Mapping[str, Any]) -> dict[str, Any]:
        """What Optuna calls a point that is shown like this."""
        told: dict[str, Any] = {}

        def choose(key: str, entry: SpaceEntry) -> Any:
            value = shown[key]
            if entry.options is not None:
                value = next(
                    label for label, option in entry.options.items()
                    if value == (label if isinstance(label, str) else option)
                )  # fmt: skip
            told[self._name(key, entry)] = value
            return value

        resolve(self._space, self._order, choose, own_values(self._config))
        return told

    def _name(self, key: str, entry: SpaceEntry) -> str:
        """One name for each entry: those of one key are other distributions."""
        return f"{key}#{self._space[key].index(entry)}"
