"""Which tensors of a file are taken: those that fit, raw before averaged, whatever trainers called them."""

import sys

import pytest

from raysnap.errors import WeightsError
from raysnap.models.blocks import shapes_of
from raysnap.models.weight_sets import choose_set, find_sets, missing_batch_counts, own_names

ARCHITECTURE = "mobilenet_v3_small"


def shapes(prefix: str = "", **more):
    return {f"{prefix}{name}": shape for name, shape in shapes_of(ARCHITECTURE).items()} | more


COUNT = {"n_averaged": ()}


@pytest.mark.parametrize(
    ("entries", "labels"),
    [
        ({"": shapes()}, [""]),
        ({"": shapes("module._orig_mod.")}, ["module._orig_mod"]),
        ({"": shapes("net.")}, ["net"]),
        ({"": shapes("module.") | COUNT}, ["module"]),
        ({"": {"n_averaged": (1,)} | shapes("module.")}, ["module"]),
        ({"model_ema": shapes("module.") | COUNT}, ["model_ema/module"]),
        ({"model_ema": shapes("module.") | COUNT, "model": shapes()}, ["model", "model_ema/module"]),
        ({"state_dict_ema": shapes(), "state_dict": shapes("module.")}, ["state_dict/module", "state_dict_ema"]),
        (
            {"state_dict": shapes("ema_model.module.") | shapes("model.")},
            ["state_dict/model", "state_dict/ema_model.module"],
        ),
        ({"teacher": shapes(), "student": shapes()}, ["teacher", "student"]),
        ({"optimizer": {"step": ()}, "net": shapes()}, ["net"]),
        ({"state_dict": {"weight": (3,)}, "backbone": shapes()}, ["backbone"]),
    ],
)
def test_the_sets_that_fit_are_found_the_raw_ones_first(entries, labels):
    sets = find_sets(ARCHITECTURE, entries)
    assert [one.label for one in sets] == labels
    for one in sets:
        names = own_names(ARCHITECTURE, one, entries[one.entry])
        assert list(names) == list(shapes_of(ARCHITECTURE))
        assert all(full == one.prefix + name for name, full in names.items())


WITHOUT_STEM = {name: shape for name, shape in shapes("net.").items() if name != "net.features.0.0.weight"}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"": WITHOUT_STEM}, "in 'net': expected 244 tensors, found 243: 1 missing (features.0.0.weight)"),
        ({"": {"a": (1,), "b": (1,), "c": (1,), "d": (1,)}}, "4 unknown (a, b, c)"),
        ({"x": {"a": (1,)}, "y": WITHOUT_STEM}, "in 'y/net'"),
        ({"": {"features.0.0.weight": (1,)}}, "for mobilenet_v3_small: expected 244 tensors, found 1: 243 missing"),
    ],
)
def test_what_nearly_fits_is_told_with_its_prefix(entries, message):
    with pytest.raises(WeightsError) as caught:
        choose_set(find_sets(ARCHITECTURE, entries), None)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("found", "label"),
    [
        (shapes("net.") | {"loss.weight": (3,)}, "net"),
        (shapes("q.") | shapes("k.") | {"queue": (3,)}, "k"),
        (shapes() | {"n_averaged": (2,)}, "state_dict"),
        (shapes() | {"other.n_averaged": ()}, "state_dict"),
    ],
)
def test_tensors_are_left_over_only_if_one_asks_for_it(found, label):
    label = "state_dict" if label == "state_dict" else f"state_dict/{label}"
    sets = find_sets(ARCHITECTURE, {"state_dict": found})
    with pytest.raises(WeightsError, match=f"all names fit in '{label}'; .* 1 more .*--entry '{label}'` leaves"):
        choose_set(sets, None)
    assert list(own_names(ARCHITECTURE, choose_set(sets, label), found)) == list(shapes())


def test_a_tensor_of_another_shape_is_named():
    found = shapes("net.") | {"net.features.0.0.weight": (1,)}
    (only,) = find_sets(ARCHITECTURE, {"": found})
    with pytest.raises(
        WeightsError, match=r"in 'net': features.0.0.weight: expected shape \(16, 3, 3, 3\), found \(1,\)"
    ):
        own_names(ARCHITECTURE, only, found)


def test_a_set_is_chosen_by_its_label_or_its_entry():
    sets = find_sets(ARCHITECTURE, {"model": shapes(), "model_ema": shapes("module.") | COUNT})
    assert choose_set(sets, None).label == "model"
    assert choose_set(sets, "model_ema").label == choose_set(sets, "model_ema/module").label == "model_ema/module"
    with pytest.raises(WeightsError, match="'model', 'model_ema/module', found 'optimizer'"):
        choose_set(sets, "optimizer")
    with pytest.raises(WeightsError, match="expected no --entry, .* found 'optimizer'"):
        choose_set(find_sets(ARCHITECTURE, {"": shapes()}), "optimizer")


def test_batch_counts_may_be_missing():
    found = {name: shape for name, shape in shapes("net.").items() if not name.endswith("num_batches_tracked")}
    (only,) = find_sets(ARCHITECTURE, {"": found})
    names = own_names(ARCHITECTURE, only, found)
    counts = [name for name in shapes_of(ARCHITECTURE) if name.endswith("num_batches_tracked")]
    assert missing_batch_counts(names) == counts  # in this order, so that messages are the same each time
    assert {*names, *counts} == set(shapes_of(ARCHITECTURE))


def test_long_names_take_little_time():
    name = ".".join(["a"] * 250)
    steps = 0

    def count(*event):
        nonlocal steps
        steps += 1

    sys.setprofile(count)
    try:
        with pytest.raises(WeightsError):
            find_sets(ARCHITECTURE, {"": {f"{number}.{name}": (1,) for number in range(1000)}})
    finally:
        sys.setprofile(None)
    assert steps < 200_000
