"""Plan each method's rungs: which items they add, and how many candidates they keep."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raysnap.config.choices import AskedMethod, Method

SHARING_METHODS = ("alsatian", "shared", "nested")
PUBLISHED_HALVING_METHODS = ("shift", "alsatian")

# The first rung of `nested` has this part of the items at least, and so many train items. So many rungs later there are
# twice as many: the sooner candidates are looked at again, the sooner those that can't be the best are dropped.
FIRST_SHARE = 1 / 16
MIN_TRAIN = 40
RUNGS_PER_DOUBLING = 2
# Probes of `nested` train on three quarters of a rung's train items, and once on half of them to see the difference.
NUM_FOLDS, NUM_FOLDS_BEFORE = 4, 2


@dataclass(frozen=True)
class Rung:
    """One round of a search: the items it adds, and how many candidates it keeps for the next.

    Probes train on the items before `train_stop` and are scored on those before `test_stop`.
    """

    train_start: int
    train_stop: int
    test_start: int
    test_stop: int
    num_kept: int

    @property
    def num_items(self) -> int:
        """The number of items that it adds."""
        return self.train_stop - self.train_start + self.test_stop - self.test_start


def shares_prefixes(method: AskedMethod) -> bool:
    """Return whether the method runs a block that several candidates begin with only once, as all that `auto` takes."""
    return method == "auto" or method in SHARING_METHODS


def drops_candidates(method: AskedMethod) -> bool:
    """Return whether the method drops a fixed part of the candidates after each rung, whatever that costs."""
    return method in PUBLISHED_HALVING_METHODS


def plan_rungs(method: Method, num_candidates: int, num_train: int, num_test: int) -> tuple[Rung, ...]:
    """Plan the rungs of a method; together they add every item, and the last one scores on all.

    Halving is as published for SHiFT and Alsatian: K = ceil(log2 N) rungs, the first with ceil(T / 2^K) of the T train
    items and all test items, each next one with twice as many train items, the last with the rest; the upper half
    (rounded down, at least one) is kept. With fewer items than that needs there are fewer rungs.

    Each rung of `nested` has the square root of two times the train and test items of the one before. How many
    candidates it keeps, and whether there is a next one, is decided by their scores; that half are left when the items
    have doubled is a guess.
    """
    if method == "nested":
        return _plan_nested(num_candidates, num_train, num_test)
    if method not in PUBLISHED_HALVING_METHODS:
        return (Rung(0, num_train, 0, num_test, num_candidates),)
    num_rungs = max(1, math.ceil(math.log2(num_candidates)))
    first_items = math.ceil(num_train / 2**num_rungs)
    stops = [first_items * (2**number - 1) for number in range(1, num_rungs)]
    train_stops = [*(stop for stop in stops if stop < num_train), num_train]
    return _link_rungs(num_candidates, train_stops, [num_test] * len(train_stops))


def _plan_nested(num_candidates: int, num_train: int, num_test: int) -> tuple[Rung, ...]:
    """Plan the rungs of `nested`: see `FIRST_SHARE` and `MIN_TRAIN`."""
    num_steps = round(-math.log2(FIRST_SHARE) * RUNGS_PER_DOUBLING)
    shares = [2.0 ** (-number / RUNGS_PER_DOUBLING) for number in range(num_steps, -1, -1)]
    shares = [share for share in shares if share * num_train >= MIN_TRAIN or share == 1]
    # Folds of equal size are fitted together.
    train_stops = [num_train if share == 1 else int(share * num_train) // NUM_FOLDS * NUM_FOLDS for share in shares]
    test_stops = [math.ceil(share * num_test) for share in shares]
    return _link_rungs(num_candidates, train_stops, test_stops, RUNGS_PER_DOUBLING)


def _link_rungs(
    num_candidates: int, train_stops: list[int], test_stops: list[int], rungs_per_halving: int = 1
) -> tuple[Rung, ...]:
    """Return rungs that end at these items; each begins where the one before ended, and so many keep the upper half."""
    shares = (2.0 ** (-number / rungs_per_halving) for number in range(1, len(train_stops) + 1))
    num_kept = (max(1, int(share * num_candidates)) for share in shares)
    edges = zip([0, *train_stops], train_stops, [0, *test_stops], test_stops, num_kept, strict=False)
    return tuple(Rung(*edge) for edge in edges)
