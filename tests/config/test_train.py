"""Options of a fine-tune that exclude each other are refused."""

import pytest
from pydantic import ValidationError

from raysnap.config.train import TrainConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_lrs": [0.1], "layer_lr_decay": 0.5}, "expected one of `layer_lrs` and `layer_lr_decay`, found both"),
        ({"schedule": "one_cycle", "warmup_epochs": 1}, "expected `warmup_epochs` 0, found 1"),
        ({"epochs": 3, "warmup_epochs": 3}, "expected `warmup_epochs` below `epochs` 3, found 3"),
        ({"batch_size": 8, "micro_batch_size": 9}, "expected `micro_batch_size` up to `batch_size` 8, found 9"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate(options)


@pytest.mark.parametrize(
    ("options", "is_mixing"), [({}, False), ({"mixup_alpha": 0.2}, True), ({"cutmix_alpha": 1.0}, True)]
)
def test_mixup_and_cutmix_mix_pixels(options, is_mixing):
    assert TrainConfig.model_validate(options).is_mixing == is_mixing
