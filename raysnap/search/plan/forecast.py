"""Forecast how long a search would take, by method and stage: from its tree, its rungs and the pace of a device.

Which candidates a rung keeps isn't known in advance. They are taken to be drawn at random: a block then runs with the
probability that one of the candidates below it is among them. Real survivors are more often relatives, share more, and
take less.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

from raysnap.config.choices import TRANSFERABILITY, Method, Proxy
from raysnap.search.plan.costs import (
    BlockSpeed,
    Costs,
    Kind,
    Rates,
    block_key,
    kind_of,
    model_share,
    shape_of,
    shape_of_kind,
)
from raysnap.search.plan.rungs import NUM_FOLDS, NUM_FOLDS_BEFORE, Rung
from raysnap.search.plan.tree import PrefixTree
from raysnap.search.plan.walk import usual_batch_items

STAGES = ("load_blocks", "decode", "inference", "proxy")

# What a device takes that nothing was measured on yet, by its type: one core of a server's CPU, and one H100, whose
# rates give the times of docs/search_speed.md.
USUAL_RATES = {
    "cpu": Rates(),
    "cuda": Rates(
        flops_per_s=1e14,
        call_s=6e-4,
        rung_s=0.06,
        first_rung_s=0.0,
        read_bytes_per_s=8e9,
        probe_s=0.05,
        probe_flops_per_s=1e12,
    ),
}
# The most probes that `Rates.probe_s` is for: a CPU takes longer with each, a GPU fits many at once.
LOCK_STEP = {"cpu": 1, "cuda": 64}

# FLOPs of scoring one candidate, from its train items, test items, dimensions and classes: a linear probe works in the
# span of the train items and takes some 60 products with all of them.
PROBE_FLOPS: dict[Proxy, Callable[[int, int, int, int], float]] = {
    "linear": lambda n, t, d, c: 2.0 * n * min(n, d) * ((d if n < d else 0) + min(n, d) + 60 * c) + 2.0 * t * d * c,
    "sgd_linear": lambda n, t, d, c: 400.0 * n * d * c + 2.0 * t * d * c,
    "knn": lambda n, t, d, c: 2.0 * n * t * d + t * c,
    "hscore": lambda n, t, d, c: 6.0 * (n + t) * d * min(n + t, d) + c,
    "logme": lambda n, t, d, c: 6.0 * (n + t) * d * min(n + t, d) + c,
}


@dataclass(frozen=True)
class DevicePace:
    """How fast a device is, as far as it was measured.

    Attributes:
        device: its type, `cpu` or `cuda`.
        num_streams: how many batches run at once: one on each core of a CPU, one on a GPU.
        speeds: of the kinds of blocks that were measured, in one stream.
        corrections: for a stage, or a proxy by name, what it took as a multiple of what it was forecast to take.
    """

    device: str
    num_streams: int
    speeds: Mapping[Kind, BlockSpeed] = field(default_factory=dict)
    corrections: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def rates(self) -> Rates:
        """What to expect of what was not measured: blocks compute as fast as those that were."""
        usual = USUAL_RATES[self.device]
        item_s = sum(speed.item_s for speed in self.speeds.values())
        if not item_s:
            return usual
        flops = sum(shape_of_kind(kind).flops for kind in self.speeds)
        call_s = sum(speed.call_s for speed in self.speeds.values()) / len(self.speeds)
        return replace(usual, flops_per_s=flops / item_s, call_s=call_s)

    def correct(self, stage: str, seconds: float) -> float:
        """Return what a stage, or a proxy, takes that is forecast to take so many seconds at the usual rates."""
        return seconds * self.corrections.get(stage, 1.0)


@dataclass(frozen=True)
class ForecastRung:
    """One rung as forecast: the candidates that enter it, the items of its probes, and its seconds."""

    num_candidates: int
    num_train: int
    num_test: int
    total_s: float


@dataclass(frozen=True)
class Forecast:
    """What a method would take.

    Attributes:
        timings_s: seconds by stage: `start`, which have passed already, `load_blocks`, `decode`, `inference`, `proxy`,
            and `total`, from the call to the answer.
        image_forwards: images through whole models, parts of models counted as fractions.
    """

    method: Method
    timings_s: dict[str, float]
    image_forwards: float
    rungs: tuple[ForecastRung, ...]

    @property
    def total_s(self) -> float:
        """Seconds from the call to the answer."""
        return self.timings_s["total"]


def add_up(rounds: Sequence[Sequence[Forecast]]) -> tuple[Forecast, ...]:
    """Return what each method takes over all rounds of a search, which wait for nothing in between."""
    added: dict[Method, Forecast] = {}
    for forecast in (forecast for forecasts in rounds for forecast in forecasts):
        before = added.get(forecast.method)
        if before is not None:
            timings_s = {stage: before.timings_s[stage] + forecast.timings_s[stage] for stage in STAGES}
            timings_s = {"start": before.timings_s["start"], **timings_s}
            timings_s["total"] = sum(timings_s.values())
            image_forwards = before.image_forwards + forecast.image_forwards
            forecast = Forecast(forecast.method, timings_s, image_forwards, before.rungs + forecast.rungs)
        added[forecast.method] = forecast
    return tuple(added.values())


@dataclass(frozen=True)
class Question:
    """What a search has left to compute, whatever its method, and how fast its device is.

    Attributes:
        candidates: those that can run.
        nodes: those that must run, as neither features nor activations below them are cached.
        num_bytes_ahead: bytes of their blocks that were read already.
    """

    tree: PrefixTree
    candidates: tuple[int, ...]
    nodes: frozenset[int]
    proxy: Proxy
    num_classes: int
    pace: DevicePace
    num_bytes_ahead: int = 0

    def unmeasured_kinds(self) -> list[Kind]:
        """Return the kinds of blocks that must run and whose speed isn't known, those with the most work first."""
        work: Counter[Kind] = Counter()
        for index in self.nodes:
            kind = kind_of(self.tree.nodes[index])
            if kind not in self.pace.speeds:
                work[kind] += shape_of_kind(kind).flops
        return sorted(work, key=lambda kind: (-work[kind], kind))

    def forecast(
        self,
        method: Method,
        rungs: Sequence[Rung],
        entrants: Sequence[int],
        *,
        num_undecoded: int,
        start_s: float,
        end_chance: float = 0.0,
    ) -> Forecast:
        """Return what these rungs are expected to take.

        Args:
            entrants: how many candidates enter each rung; the rungs after these don't run.
            end_chance: the probability that a rung is the last one.
            num_undecoded: how many images must be decoded.
            start_s: seconds that have passed.
        """
        timings_s = {"start": start_s} | dict.fromkeys(STAGES, 0.0)
        num_bytes_left = max(0, self._block_bytes - self.num_bytes_ahead)
        timings_s["load_blocks"] = self.pace.correct("load_blocks", num_bytes_left / self.pace.rates.read_bytes_per_s)
        decode_s = num_undecoded * self.pace.rates.decode_s / self.pace.num_streams
        timings_s["decode"] = self.pace.correct("decode", decode_s)
        image_forwards, chance = 0.0, 1.0
        forecast_rungs = []
        for rung, num_candidates in zip(rungs, entrants, strict=False):
            stages_s = self.rung_s(method, rung, num_candidates)
            for stage, seconds in stages_s.items():
                timings_s[stage] += chance * seconds
            models = sum(
                group.models * hit_share(len(self.candidates), group.reach, num_candidates) for group in self._groups
            )
            image_forwards += chance * rung.num_items * models
            total_s = sum(stages_s.values())
            forecast_rungs.append(ForecastRung(num_candidates, rung.train_stop, rung.test_stop, total_s))
            chance *= 1 - end_chance
        timings_s["total"] = sum(timings_s.values())
        return Forecast(method, timings_s, image_forwards, tuple(forecast_rungs))

    def rung_s(self, method: Method, rung: Rung, num_candidates: int) -> dict[str, float]:
        """Return the seconds by stage of a rung that so many candidates enter, its images decoded, its blocks read."""
        inference_s = self.rungs_s(1, is_first=not rung.train_start) if self.nodes else 0.0
        for group in self._groups:
            num_rounds = math.ceil(rung.num_items / (group.batch_items * self.pace.num_streams))
            largest = math.ceil(rung.num_items / max(1, min(rung.num_items, num_rounds * self.pace.num_streams)))
            share = hit_share(len(self.candidates), group.reach, num_candidates)
            inference_s += share * num_rounds * (group.call_s + largest * group.item_s)
        return {
            "decode": self.pace.correct("decode", rung.num_items * self.pace.rates.pixel_s),
            "inference": self.pace.correct("inference", inference_s),
            "proxy": self.pace.correct(
                self.proxy, self.probes_s(method, rung.train_stop, rung.test_stop, num_candidates)
            ),
        }

    def rungs_s(self, num_rungs: int, *, is_first: bool) -> float:
        """Return the seconds that rungs take at the usual rates whatever is in them."""
        return num_rungs * self.pace.rates.rung_s + is_first * self.pace.rates.first_rung_s

    def probes_s(self, method: Method, num_train: int, num_test: int, num_candidates: int) -> float:
        """Return the seconds of scoring so many candidates at the usual rates, which nothing measured corrects.

        Candidates and folds are fitted together, on a CPU a part of them on each core.
        """
        rates, seconds = self.pace.rates, 0.0
        share = num_candidates / max(1, len(self.candidates))
        for num_folds, num_fitted, num_scored in self._fits(method, num_train, num_test):
            flops = sum(
                count * PROBE_FLOPS[self.proxy](num_fitted, num_scored, width, self.num_classes)
                for width, count in self._widths.items()
            )
            num_calls = math.ceil(num_folds * num_candidates / LOCK_STEP[self.pace.device])
            at_once = max(1, min(self.pace.num_streams, num_calls))
            seconds += math.ceil(num_calls / at_once) * rates.probe_s
            seconds += num_folds * share * flops / at_once / rates.probe_flops_per_s
        return seconds

    def _fits(self, method: Method, num_train: int, num_test: int) -> list[tuple[int, int, int]]:
        """Return how many probes of a candidate are fitted on how many items and scored on how many.

        `nested` cross-validates.
        """
        if method != "nested" or self.proxy in TRANSFERABILITY:
            return [(1, num_train, num_test)]
        return [
            (num_folds, num_train - num_train // num_folds, num_train // num_folds + num_test)
            for num_folds in (NUM_FOLDS, NUM_FOLDS_BEFORE)
        ]

    @cached_property
    def _block_bytes(self) -> int:
        nodes = (self.tree.nodes[index] for index in self.nodes)
        return sum({block_key(node): node.block.num_bytes for node in nodes}.values())

    @cached_property
    def _widths(self) -> Counter[int]:
        """How many candidates have features of each width."""
        ends = (self.tree.nodes[self.tree.end_of(number)] for number in self.candidates)
        return Counter(shape_of(end).feature_dim for end in ends)

    @cached_property
    def _groups(self) -> tuple[_Group, ...]:
        """The nodes that must run, grouped by what their share of the work depends on."""
        reach, able = Counter[int](), set(self.candidates)
        for node in reversed(self.tree.nodes):
            reach[node.index] += len(able.intersection(node.candidates))
            if node.parent is not None:
                reach[node.parent] += reach[node.index]
        costs = Costs.of(self.tree, self.nodes, self.pace.rates, self.pace.speeds)
        groups: dict[tuple[int, int], _Group] = {}
        for index in costs.needed:
            node = self.tree.nodes[index]
            batch_items = usual_batch_items(node.architecture, node.preprocessing.image_size, self.pace.device)
            key = batch_items, reach[index]
            group = groups.get(key, _Group(*key))
            groups[key] = group.plus(costs.call_s[index], costs.item_s[index], model_share(kind_of(node)))
        return tuple(groups.values())


@dataclass(frozen=True)
class _Group:
    """Nodes that run in batches of as many items and that as many candidates need: their costs and parts, summed."""

    batch_items: int
    reach: int
    call_s: float = 0.0
    item_s: float = 0.0
    models: float = 0.0

    def plus(self, call_s: float, item_s: float, models: float) -> _Group:
        return replace(self, call_s=self.call_s + call_s, item_s=self.item_s + item_s, models=self.models + models)


@lru_cache(maxsize=4096)
def hit_share(num_candidates: int, reach: int, num_drawn: int) -> float:
    """Return the probability that one of `reach` candidates is among `num_drawn` that are drawn at random."""
    num_others = num_candidates - reach
    if num_drawn > num_others:
        return 1.0
    logs = (num_others, num_candidates - num_drawn, num_others - num_drawn, num_candidates)
    missed, kept, rest, everyone = (math.lgamma(number + 1) for number in logs)
    return 1.0 - math.exp(missed + kept - rest - everyone)
