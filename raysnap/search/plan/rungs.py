"""Plan each method's rungs: which items they add, and how many candidates they keep."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raysnap.config.choices import Method

SHARING_METHODS = ("alsatian", "shared", "nested")
PUBLISHED_HALVING_METHODS = ("shift", "alsatian")

# The part of the train items that the rungs of `nested` before the last one get together, and how many times faster
# than the train items its test items are added: four of five items are train items, but only test items distinguish
# candidates. On four questions to trained snapshots such rungs take 7 % less, for answers as good, than smaller
# ones up to a quarter of the train items, which leave a long way from the last decision to the end.
EARLY_TRAIN_SHARE = 0.375
TEST_LEAD = 3


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


def shares_prefixes(method: Method) -> bool:
    """Return whether the method runs a block that several candidates begin with only once."""
    return method in SHARING_METHODS


def plan_rungs(method: Method, num_candidates: int, num_train: int, num_test: int) -> tuple[Rung, ...]:
    """Plan the rungs of a method; together they add every item, and the last one scores on all.

    Halving is as published for SHiFT and Alsatian: K = ceil(log2 N) rungs, the first with ceil(T / 2^K) of the T train
    items and all test items, each next one with twice as many train items, the last with the rest; the upper half
    (rounded down, at least one) is kept. With fewer items than that needs there are fewer rungs. `nested` halves as
    often, and then scores the remaining candidates on everything: each rung before the last ends twice as far into the
    train items as the one before, and into the test items, until all of these are in.
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
    """Plan the rungs of `nested`: see `EARLY_TRAIN_SHARE` and `TEST_LEAD`."""
    num_halvings = math.ceil(math.log2(num_candidates))
    early_stops = {math.ceil(EARLY_TRAIN_SHARE * num_train / 2**number) for number in range(num_halvings)}
    train_stops = [*sorted(stop for stop in early_stops if stop < num_train), num_train]
    test_stops = [min(num_test, math.ceil(TEST_LEAD * num_test * stop / num_train)) for stop in train_stops]
    return _link_rungs(num_candidates, train_stops, test_stops)


def _link_rungs(num_candidates: int, train_stops: list[int], test_stops: list[int]) -> tuple[Rung, ...]:
    """Return rungs that end at these items; each begins where the one before ended and keeps the upper half."""
    num_kept = (max(1, num_candidates >> number) for number in range(1, len(train_stops) + 1))
    edges = zip([0, *train_stops], train_stops, [0, *test_stops], test_stops, num_kept, strict=False)
    return tuple(Rung(*edge) for edge in edges)
