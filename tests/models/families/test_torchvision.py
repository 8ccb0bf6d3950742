"""torchvision's models: blocks cut at waists compose to the model's own forward.

`RAYSNAP_DEEP=1` takes large ones as well; `tools/family_coverage.py torchvision` takes all.
"""

import os

import pytest
import torch

from raysnap.models import blocks
from raysnap.models.families.family import build, skeleton
from tests.support.compositions import NUM_CLASSES, compare, state_dict_of, train_last

AT_WAISTS = {
    "alexnet": 64,
    "densenet121": 32,
    "googlenet": 32,
    "inception_v3": 96,
    "maxvit_t": 224,
    "mnasnet0_5": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_0": 32,
    "vgg11_bn": 32,
}
SMALL = ("googlenet", "mnasnet0_5", "shufflenet_v2_x0_5", "squeezenet1_0")


@pytest.mark.parametrize("architecture", AT_WAISTS if os.environ.get("RAYSNAP_DEEP") == "1" else SMALL)
def test_blocks_compose_to_the_models_forward(architecture):
    found = compare(architecture, AT_WAISTS[architecture])
    assert (found.difference, found.faults) == (0, ())
    assert found.spread > 0, "outputs don't depend on the images"


def test_heads_for_training_lie_idle():
    names = dict(blocks.split_state_dict("googlenet", state_dict_of("googlenet")))
    assert {"aux1.conv.conv.weight", "aux2.fc1.bias"} <= names["stem"].keys()
    assert set(names["head"]) == {
        f"{layer}.{key}" for layer in ("fc", "aux1.fc2", "aux2.fc2") for key in ("weight", "bias")
    }
    assert {tensor.shape[0] for tensor in names["head"].values()} == {NUM_CLASSES}


@pytest.mark.parametrize("architecture", ["googlenet", "squeezenet1_0"])
def test_a_head_of_another_width_loads_strictly(architecture):
    split = blocks.split_state_dict(architecture, state_dict_of(architecture))
    head = blocks.random_head(architecture, 3, seed=0)
    union = {name: tensor for _, part in split[:-1] for name, tensor in part.items()} | head
    assert build(architecture, 3, union).state_dict().keys() == union.keys()
    assert torch.equal(blocks.random_head(architecture, 3, seed=0)[next(iter(head))], next(iter(head.values())))


def test_linear_layers_before_the_head_are_the_bodys():
    *_, body, head = (block.tensors() for block in skeleton("vgg11"))
    assert set(head) == {"classifier.6.weight", "classifier.6.bias"}
    assert {"features.18.weight", "classifier.0.weight", "classifier.3.bias"} <= body.keys()
    assert blocks.feature_dim("vgg11") == 4096


@pytest.mark.parametrize("retrain_index", [0, 1, 3])
def test_the_last_blocks_alone_are_trained(retrain_index):
    changed, allowed = train_last("googlenet", retrain_index, 32)
    assert changed and changed <= allowed
