"""Scores equal what scikit-learn, the field's reference, says of the same predictions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from raysnap.training.evaluation import count_confusion, macro_f1


@st.composite
def labelled(draw):
    num_classes = draw(st.integers(2, 12))
    classes = st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=60)
    labels = draw(classes)
    predicted = draw(st.lists(st.integers(0, num_classes - 1), min_size=len(labels), max_size=len(labels)))
    return num_classes, labels, predicted


@given(labelled())
def test_confusion_and_macro_f1_are_scikit_learns(case):
    num_classes, labels, predicted = case
    confusion = count_confusion(torch.tensor(labels), torch.tensor(predicted), num_classes)
    expected = metrics.confusion_matrix(labels, predicted, labels=range(num_classes))
    np.testing.assert_array_equal(confusion.numpy(), expected)
    assert macro_f1(confusion) == pytest.approx(metrics.f1_score(labels, predicted, average="macro", zero_division=0))


def test_a_class_that_nobody_saw_or_named_does_not_count():
    assert macro_f1(torch.tensor([[2, 0, 0], [0, 3, 0], [0, 0, 0]])) == 1.0
