"""Logistic regressions converge, whatever their classes."""

import numpy as np
import pytest
import torch

from raysnap.search.probes.logistic import TOLERANCE, fit_logistic_regressions
from tests.support.search_stores import one_thread


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0, 8.0])
@pytest.mark.parametrize(
    ("num_items", "num_dims", "num_classes"), [(2, 3, 2), (30, 8, 3), (120, 60, 12), (400, 40, 4), (200, 150, 40)]
)
def test_regressions_converge_from_noise_to_classes_far_apart(num_items, num_dims, num_classes, spread):
    """The loss is strongly convex through its penalty: half the squared gradient bounds what it could still fall."""
    rng = np.random.default_rng(0)
    targets = torch.from_numpy(np.arange(num_items) % num_classes)
    centres = spread * rng.standard_normal((num_classes, num_dims))
    inputs_BNR = torch.from_numpy(centres[targets] + rng.standard_normal((2, num_items, num_dims)))
    weights_BCR, bias_BC = fit_logistic_regressions(inputs_BNR, targets.expand(2, -1), num_classes)
    logits_BNC = inputs_BNR @ weights_BCR.mT + bias_BC[:, None]
    error_BNC = torch.softmax(logits_BNC, dim=2) - torch.nn.functional.one_hot(targets, num_classes)
    gradient_BCR = error_BNC.mT @ inputs_BNR + weights_BCR
    assert gradient_BCR.square().sum(dim=(1, 2)).max() / num_items <= 1.01 * TOLERANCE
    assert error_BNC.sum(dim=1).abs().max() / num_items < 1e-5
