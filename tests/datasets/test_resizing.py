"""Sizes and crops as libraries round them, and names of caches that never meet."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysnap.datasets.resizing import Resizing, crop_start, kept_range, resized_shape

LENGTH = st.integers(1, 400)


@given(length=LENGTH, kept_size=LENGTH, crop=st.floats(0, 1), rounding=st.sampled_from(["even", "down"]))
def test_every_crop_lies_in_what_is_kept(length, kept_size, crop, rounding):
    crop_size = max(1, round(crop * kept_size))
    first, num_kept = kept_range(length, kept_size)
    start = crop_start(length, crop_size, rounding)
    assert first >= 0 and num_kept <= kept_size + 1 and first + num_kept <= length
    assert first <= max(0, start)
    assert min(length, start + crop_size) <= first + num_kept


@given(length=LENGTH, crop_size=LENGTH)
def test_roundings_differ_by_at_most_a_pixel(length, crop_size):
    even, down = (crop_start(length, crop_size, rounding) for rounding in ("even", "down"))
    assert abs(even - down) <= ((length - crop_size) % 2)
    assert abs(2 * even - (length - crop_size)) <= 1


def test_the_longer_side_is_rounded_down():
    assert resized_shape(100, 333, Resizing(32)) == (32, 106)
    assert resized_shape(333, 100, Resizing(32)) == (106, 32)
    assert resized_shape(333, 100, Resizing(32, "squash")) == (32, 32)


def test_no_label_begins_with_another():
    ways = [
        Resizing(size, mode, interpolation, padded)
        for size in (25, 256)
        for mode in ("shorter_side", "squash")
        for interpolation in ("nearest", "bilinear", "bicubic", "lanczos")
        for padded in (0, 300)
    ]
    labels = [way.label for way in ways]
    assert len(set(labels)) == len(labels) == len({way.text for way in ways})
    assert not any(f"{one}-".startswith(f"{other}-") for one in labels for other in labels if one != other)


@pytest.mark.parametrize(
    ("way", "label", "text"),
    [(Resizing(256), "256", "bilinear 256"), (Resizing(24, "squash", "lanczos", 30), "squash-lanczos-24in30", None)],
)
def test_the_usual_way_has_the_names_it_always_had(way, label, text):
    assert way.label == label
    assert text is None or way.text == text
