"""Strata: bodies, what is known of them, and an order that covers their kinds."""

import random

from hypothesis import given
from hypothesis import strategies as st

from raysnap.search.plan.strata import Body, Traits, find_bodies, order_evenly
from raysnap.store.index import SnapshotSummary


def summary(name, *, body=None, architecture="resnet18", dataset=None, retrain_index=None, accuracy=None, base=None):
    return SnapshotSummary(
        id=name,
        architecture=architecture,
        dataset=dataset,
        retrain_index=retrain_index,
        accuracy=accuracy,
        num_classes=4,
        num_blocks=10,
        num_bytes=1,
        image_size=32,
        body=body or name,
        base=base,
        trial=None,
        created="",
        names=(),
    )


def test_heads_apart_equal_snapshots_are_one_body_of_the_oldest():
    base = summary("base", body="b")
    head = summary("head", body="b", base="base", retrain_index=0, dataset="pets")
    (body,) = find_bodies([base, head])
    assert body.snapshots == ("base", "head")
    assert body.traits == Traits("resnet18 at 32 px", "base", "", "0", "base")


def test_a_line_of_fine_tunes_has_one_root():
    first = summary("a")
    second = summary("b", base="a", retrain_index=3, dataset="pets")
    third = summary("c", base="b", retrain_index=8, dataset="cars")
    elsewhere = summary("d", base="gone", retrain_index=1)
    traits = [body.traits for body in find_bodies([first, second, third, elsewhere])]
    assert [one.root for one in traits] == ["a", "a", "a", "gone"]
    assert [one.base for one in traits] == ["a", "a", "b", "gone"]
    assert [one.depth for one in traits] == ["0", "2", "4", "1"]


def test_promise_compares_within_datasets_and_counts_fine_tunes():
    bases = [summary("good"), summary("bad")]
    tuned = [
        summary(f"{base}-{dataset}", base=base, retrain_index=2, dataset=dataset, accuracy=level + gain)
        for dataset, level in (("easy", 0.9), ("hard", 0.4))
        for base, gain in (("good", 0.05), ("bad", -0.05))
    ]
    promise = {body.snapshots[0]: body.promise for body in find_bodies([*bases, *tuned])}
    assert promise["good"] == -promise["bad"] and promise["good"] > promise["good-hard"] > 0
    assert abs(promise["good-easy"] - promise["good-hard"]) < 1e-9, "not that one dataset is easier"


def test_unknown_and_equal_accuracies_promise_nothing():
    same = [summary(name, dataset="pets", accuracy=0.5) for name in "ab"]
    assert {body.promise for body in find_bodies([summary("c"), *same])} == {0.0}


def test_every_architecture_then_every_dataset_has_its_turn():
    many = [Body((f"a{n}",), Traits("a", "r", f"set-{n % 5}", "1", "r"), n / 100) for n in range(40)]
    few = [Body((f"b{n}",), Traits("b", "s", "set-0", "1", "s"), 9.0) for n in range(2)]
    order = order_evenly([*many, *few])
    first = [(*many, *few)[number] for number in order[:9]]
    assert sum(body.traits.input == "b" for body in first) == 2
    assert {body.traits.dataset for body in first if body.traits.input == "a"} == {f"set-{n}" for n in range(5)}
    assert first[0].snapshots == ("a39",), "of the largest kinds, the one with the most promise, and its best"


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 5, st.integers(-2, 2)), max_size=30))
def test_the_order_has_everyone_once_whatever_order_they_come_in(rows):
    bodies = [Body((f"{n:02}",), Traits(*map(str, row[:5])), float(row[5])) for n, row in enumerate(rows)]
    order = order_evenly(bodies)
    assert sorted(order) == list(range(len(bodies)))
    shuffled = random.Random(0).sample(bodies, len(bodies))
    assert [shuffled[n] for n in order_evenly(shuffled)] == [bodies[n] for n in order]
