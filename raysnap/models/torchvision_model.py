"""A whole torchvision model, of torchvision's own class, built around stored tensors."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from raysnap.models.blocks import Weightless
from raysnap.models.lean_torchvision import models


def build_torchvision_model(architecture: str, num_classes: int, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Build torchvision's model in eval mode around these tensors, which are not copied.

    Args:
        architecture: torchvision's builder name.
        num_classes: number of outputs of the head.
        state_dict: exactly the model's parameters and buffers, under torchvision's names.

    Raises:
        RuntimeError: a tensor is missing, unknown or of another shape.
    """
    with Weightless(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # inception_v3 and googlenet announce another initialisation
        model = cast(nn.Module, models.get_model(architecture, weights=None, num_classes=num_classes))
    model.load_state_dict(dict(state_dict), strict=True, assign=True)
    return model.eval()
