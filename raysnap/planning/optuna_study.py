"""A sweep led by Optuna: it gets every trial's result and suggests the next point, conditions included.

What it suggests depends on which trials end first, so its trials can't be listed beforehand: each is written to
`trials.jsonl` when it is suggested, and a resumed sweep feeds all its rows to a new study.
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
    """Suggests a sweep's trials, numbered on from the existing ones.

    Args:
        make: returns the trial at a point, with its number.
        before: trials that an earlier study suggested.
        objectives: those of the trials that ended, by their ids.
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
            self._study.enqueue_trial(self._choices(trial.point or {}))
            self._asked[trial.id] = asked = self._study.ask()
            self._resolve(asked)
            if trial.id in objectives:
                self.tell(trial.id, objectives[trial.id])

    def suggest(self) -> Trial | None:
        """Return the next trial; None when there are `num_trials`."""
        if len(self.trials) >= self._num_trials:
            return None
        asked = self._study.ask()
        trial = self._make(Point(*self._resolve(asked), sample=1), len(self.trials) + 1)
        self._asked[trial.id] = asked
        self.trials.append(trial)
        return trial

    def tell(self, trial_id: str, objective: float | None) -> None:
        """Pass a trial's objective on to Optuna; None for a trial without one."""
        import optuna

        asked = self._asked.pop(trial_id, None)
        if asked is None:
            return
        self._study.tell(asked, objective, state=optuna.trial.TrialState.FAIL if objective is None else None)

    def _resolve(self, asked: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the values that one of Optuna's trials suggests for all active keys, and how they are shown."""

        def choose(key: str, entry: SpaceEntry) -> Any:
            name = self._name(key, entry)
            if entry.options is not None:
                return asked.suggest_categorical(name, list(entry.options))
            if entry.randint is not None:
                return asked.suggest_int(name, *entry.randint)
            low, high = entry.ends
            return asked.suggest_float(name, low, high, log=entry.loguniform is not None)

        return resolve(self._space, self._order, choose, own_values(self._config))

    def _choices(self, shown: Mapping[str, Any]) -> dict[str, Any]:
        """Return Optuna's names and values for a point that is shown like this."""
        named: dict[str, Any] = {}

        def choose(key: str, entry: SpaceEntry) -> Any:
            value = shown[key]
            if entry.options is not None:
                value = next(
                    label for label, option in entry.options.items()
                    if value == (label if isinstance(label, str) else option)
                )  # fmt: skip
            named[self._name(key, entry)] = value
            return value

        resolve(self._space, self._order, choose, own_values(self._config))
        return named

    def _name(self, key: str, entry: SpaceEntry) -> str:
        """Return a name for each entry, since the entries of one key are different distributions."""
        return f"{key}#{self._space[key].index(entry)}"
