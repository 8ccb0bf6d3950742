"""Learning rates: per block as they are listed, and from step to step as torch's own schedulers have them."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

from raysnap.config.train import TrainConfig
from raysnap.errors import ConfigError
from raysnap.models.block_facts import num_body_blocks
from raysnap.models.blocks import build_model, random_tensors
from raysnap.training.schedules import block_lrs, lr_factor
from raysnap.training.state import parameter_groups

STUDY_LRS = (1e-3, 1e-4, 1e-5, 1e-6)
FAMILIES = [
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "regnet_y_400mf",
    "convnext_tiny",
    "swin_t",
    "vit_b_32",
]


def torch_factors(schedule: str, num_epochs: int, steps_per_epoch: int, **options) -> list[float]:
    """Return the rates that torch's scheduler gives to a rate of 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    num_steps = num_epochs * steps_per_epoch
    made = {
        "constant": lambda: lr_scheduler.ConstantLR(optimizer, factor=1.0),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimizer, T_max=num_steps),
        "one_cycle": lambda: lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=num_steps),
        "step": lambda: lr_scheduler.StepLR(
            optimizer, options["step_epochs"] * steps_per_epoch, gamma=options["step_factor"]
        ),
    }[schedule]()
    rates = []
    for step in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < num_steps - 1:
            made.step()
    return rates


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle", "step"])
@pytest.mark.parametrize(("num_epochs", "steps_per_epoch"), [(1, 2), (3, 1), (5, 7), (12, 4)])
def test_a_schedule_is_torchs(schedule, num_epochs, steps_per_epoch):
    options = {"step_epochs": 2, "step_factor": 0.3}
    config = TrainConfig(epochs=num_epochs, schedule=schedule, **options)
    found = [lr_factor(config, step, steps_per_epoch) for step in range(num_epochs * steps_per_epoch)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        expected = torch_factors(schedule, num_epochs, steps_per_epoch, **options)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(
    schedule=st.sampled_from(["constant", "cosine", "step"]),
    num_epochs=st.integers(2, 30),
    steps_per_epoch=st.integers(1, 40),
    share=st.floats(0, 0.99),
)
def test_a_warm_up_rises_to_the_full_rate_before_the_schedule(schedule, num_epochs, steps_per_epoch, share):
    config = TrainConfig(epochs=num_epochs, schedule=schedule, warmup_epochs=share * num_epochs)
    factors = [lr_factor(config, step, steps_per_epoch) for step in range(num_epochs * steps_per_epoch)]
    num_warm = round(config.warmup_epochs * steps_per_epoch)
    assert factors[:num_warm] == sorted(set(factors[:num_warm])), "it rises with every step"
    assert all(0 < factor < 1 for factor in factors[:num_warm])
    assert factors[num_warm:] == sorted(factors[num_warm:], reverse=True)
    if num_warm < len(factors):
        assert factors[num_warm] == 1.0


@pytest.mark.parametrize("architecture", FAMILIES)
def test_listed_rates_reach_the_parameter_groups_of_every_family(architecture):
    """The head's group has the first rate, the front's the last, each parameter is in one group."""
    model = build_model(architecture, [tensors for _, tensors in random_tensors(architecture, 3, 0)])
    optimizer = torch.optim.AdamW(parameter_groups(model, TrainConfig(layer_lrs=STUDY_LRS)))
    rate_of = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    assert set(rate_of) == {id(one) for one in model.parameters()}
    rates = [{rate_of[id(one)] for one in block.parameters()} for block in model]
    assert all(len(of_block) == 1 for of_block in rates), "a block has one rate"
    rates_by_block = [of_block.pop() for of_block in rates]
    assert rates_by_block == sorted(rates_by_block), "from the front to the head they rise"
    assert rates_by_block[-1] == STUDY_LRS[0]
    shares = [rates_by_block.count(lr) for lr in STUDY_LRS[1:]]
    assert sum(shares) == num_body_blocks(architecture) + 1
    assert max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True)


def test_geometric_decay_multiplies_from_block_to_block():
    config = TrainConfig(lr=0.1, layer_lr_decay=0.5)
    assert block_lrs(config, 4) == pytest.approx([0.0125, 0.025, 0.05, 0.1])


@pytest.mark.parametrize(
    ("lrs", "num_trained", "expected"),
    [
        ((1.0,), 3, [1, 1, 1]),
        ((3.0, 2.0), 4, [2, 2, 2, 3]),
        ((3.0, 2.0, 1.0), 4, [1, 2, 2, 3]),
        ((3.0, 2.0, 1.0), 3, [1, 2, 3]),
        ((3.0,), 1, [3]),
    ],
)
def test_any_list_is_shared_among_the_trained_blocks(lrs, num_trained, expected):
    assert block_lrs(TrainConfig(layer_lrs=lrs), num_trained) == expected


def test_more_rates_than_trained_blocks_are_refused():
    with pytest.raises(ConfigError, match=r"train\.layer_lrs: expected at most one rate for each of the 3 .*found 4"):
        block_lrs(TrainConfig(layer_lrs=STUDY_LRS), 3)


def test_without_rates_of_their_own_all_parameters_are_one_group():
    model = build_model("resnet18", [tensors for _, tensors in random_tensors("resnet18", 3, 0)])
    (group,) = parameter_groups(model, TrainConfig(lr=0.25))
    assert group["lr"] == 0.25
    assert len(group["params"]) == len(list(model.parameters()))
