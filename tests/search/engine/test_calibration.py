"""What blocks take is found out without their weights, and dealt by."""

import torch

from raysnap.models.numerics import Numerics
from raysnap.search.engine.calibration import measure_kinds
from raysnap.search.plan.costs import BlockSpeed, Costs, Rates
from raysnap.search.plan.tree import build_tree
from tests.support.search_stores import candidate, digest, one_thread


def test_each_kind_of_block_is_measured_and_those_alike_once():
    kinds = {("resnet18", 32, index) for index in range(9)} | {("mobilenet_v3_small", 32, 3)}
    numerics = Numerics.for_inference("float32", torch.device("cpu"))
    with one_thread():
        speeds = measure_kinds(sorted(kinds), numerics)
        hurried = measure_kinds([("resnet18", 32, 2), ("resnet18", 32, 3), ("resnet18", 32, 1)], numerics, limit_s=0.0)
    assert speeds.keys() == kinds and all(speed.call_s + speed.item_s > 0 for speed in speeds.values())
    assert speeds["resnet18", 32, 1] == speeds["resnet18", 32, 2] != speeds["resnet18", 32, 3]
    assert hurried.keys() == {("resnet18", 32, 2), ("resnet18", 32, 1)}, "the first, and one that is alike"


def test_costs_are_those_measured_and_by_flops_where_none_is():
    tree = build_tree([candidate("one", [digest(index) for index in range(9)])], sharing=True)
    rates = Rates(flops_per_s=1e9)
    by_flops = Costs.of(tree, range(9), rates)
    measured = Costs.of(tree, range(9), rates, {("resnet18", 32, 4): BlockSpeed(0.5, 7.0)})
    assert measured.item_s == by_flops.item_s | {4: 7.0}
    assert measured.call_s == by_flops.call_s | {4: 0.5}
