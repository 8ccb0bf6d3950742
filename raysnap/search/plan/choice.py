"""Choose a search's method, and how much of its question fits a time budget, by what each is forecast to take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raysnap.config.choices import AskedMethod, Method
from raysnap.config.search_options import DEFAULT_TOLERANCE
from raysnap.humanize import count_text, seconds_text
from raysnap.search.plan.forecast import Forecast, Question
from raysnap.search.plan.rungs import Rung, plan_rungs, shares_prefixes

# What `auto` takes one of: both keep the tolerance, `alsatian` has none.
AUTO_METHODS: tuple[Method, ...] = ("shared", "nested")

# The part of searches by `nested` that end after a rung, of those that come to it: of nine they take four or five.
END_CHANCE = 1 / 6

# The parts of the items that are tried for a time budget: each by this much smaller than the one before, down to as
# many items of each class as a probe and its score need to mean something.
SHARE_STEP = 0.85
MIN_TRAIN_PER_CLASS = 4
MIN_TEST_PER_CLASS = 2


@dataclass(frozen=True)
class Choice:
    """The method that a search takes and the items it uses.

    Attributes:
        reason: why, as the end of a sentence about the method.
        forecasts: what the methods that were considered would take, with these items.
        is_open: whether the pace of the device could have led to another method.
    """

    method: Method
    num_train: int
    num_test: int
    reason: str
    forecasts: tuple[Forecast, ...]
    is_open: bool

    @property
    def forecast(self) -> Forecast:
        """What the method taken would take."""
        return next(one for one in self.forecasts if one.method == self.method)


def choose(
    question: Question,
    asked: AskedMethod,
    num_train: int,
    num_test: int,
    *,
    num_undecoded: Callable[[int, int], int],
    start_s: float,
    budget_s: float | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
) -> Choice:
    """Choose the method that answers soonest, with as many of the items as fit the budget.

    Args:
        asked: a method, which is taken, or `auto`.
        num_undecoded: how many images must be decoded before a search of the first train and test items.
        start_s: seconds that have passed since the call.
        budget_s: seconds from the call to the answer; None is no limit.
        tolerance: as in `SearchOptions`.
    """
    is_single = asked == "auto" and len(question.candidates) < 2
    if is_single:
        asked = "shared"
    considered = dict.fromkeys((*AUTO_METHODS, *(() if asked == "auto" else (asked,))))
    methods = [method for method in considered if method == asked or shares_prefixes(asked)]
    least_train = min(num_train, MIN_TRAIN_PER_CLASS * question.num_classes)
    least_test = min(num_test, MIN_TEST_PER_CLASS * question.num_classes)
    share = 1.0
    while True:
        items = max(least_train, round(share * num_train)), max(least_test, round(share * num_test))
        forecasts = []
        for method in methods:
            rungs = plan_rungs(method, len(question.tree.candidates), *items)
            entrants = expected_entrants(method, rungs, len(question.candidates), tolerance)
            undecoded = num_undecoded(*items)
            end_chance = END_CHANCE if method == "nested" and tolerance else 0.0
            forecasts.append(
                question.forecast(
                    method, rungs, entrants, num_undecoded=undecoded, start_s=start_s, end_chance=end_chance
                )
            )
        soonest = min((one for one in forecasts if asked in ("auto", one.method)), key=lambda one: one.total_s)
        if budget_s is None or soonest.total_s <= budget_s or items == (least_train, least_test):
            break
        share *= SHARE_STEP
    is_open = asked == "auto"
    closed = "there is a single candidate" if is_single else "it was asked for"
    reasons = [_why_method(soonest, forecasts) if is_open else closed]
    if budget_s is not None:
        reasons.append(_why_items(soonest, sum(items), num_train + num_test, budget_s))
    return Choice(soonest.method, *items, "; ".join(reasons), tuple(forecasts), is_open)


def expected_entrants(method: Method, rungs: Sequence[Rung], num_candidates: int, tolerance: float) -> list[int]:
    """Return how many candidates enter each rung if each keeps as many as planned and none ends the search.

    Without a tolerance, `nested` is taken to drop nobody.
    """
    if method == "nested" and not tolerance:
        return [num_candidates] * len(rungs)
    counts = [num_candidates]
    for rung in rungs[:-1]:
        counts.append(min(counts[-1], rung.num_kept))
    return counts


def _why_method(taken: Forecast, forecasts: Sequence[Forecast]) -> str:
    others = [f"{one.method} {seconds_text(one.total_s)}" for one in forecasts if one is not taken]
    return f"it is forecast to answer soonest, in {seconds_text(taken.total_s)} ({', '.join(others)})"


def _why_items(taken: Forecast, num_items: int, num_all: int, budget_s: float) -> str:
    over_s = taken.total_s - budget_s
    if over_s > 0:
        took = f"even {count_text(num_items)} of {count_text(num_all)} items take {seconds_text(taken.total_s)}"
        return f"{took}, {seconds_text(over_s)} more than the {seconds_text(budget_s)} left of the time budget"
    part = "all" if num_items == num_all else f"{count_text(num_items)} of"
    return f"{part} {count_text(num_all)} items fit the {seconds_text(budget_s)} left of the time budget"
