"""Blocks: their composition is torchvision's model, and each can be had alone."""

import pytest
import torch
from torchvision import models

from raysnap.errors import ArchitectureError, WeightsError
from raysnap.models import blocks
from raysnap.models.block_facts import block_shapes, num_body_blocks

NUM_BODY_BLOCKS = {
    "resnet18": 8,
    "resnet34": 16,
    "resnet50": 16,
    "resnet101": 33,
    "resnet152": 50,
    "mobilenet_v2": 18,
    "efficientnet_v2_s": 41,
    "efficientnet_v2_l": 80,
    "vit_b_16": 12,
    "vit_b_32": 12,
    "vit_l_16": 24,
    "vit_l_32": 24,
}
ONE_OF_EACH_FAMILY = [
    ("resnet18", 64),
    ("resnext50_32x4d", 64),
    ("mobilenet_v2", 64),
    ("mobilenet_v3_small", 64),
    ("efficientnet_b0", 64),
    ("efficientnet_v2_s", 64),
    ("regnet_y_400mf", 64),
    ("vit_b_32", 224),
    ("swin_t", 64),
    ("swin_v2_t", 64),
    ("convnext_tiny", 64),
]


def randomised(architecture: str) -> torch.nn.Module:
    """Return a torchvision model in eval mode without trivial BatchNorm statistics or zero-initialised tensors."""
    torch.manual_seed(0)
    model = models.get_model(architecture, weights=None, num_classes=7).eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize(("architecture", "expected"), NUM_BODY_BLOCKS.items())
def test_the_number_of_blocks_is_the_contracts(architecture, expected):
    assert num_body_blocks(architecture) == expected


@pytest.mark.parametrize(("architecture", "image_size"), ONE_OF_EACH_FAMILY)
def test_blocks_compose_to_torchvisions_forward_bit_for_bit(architecture, image_size):
    model = randomised(architecture)
    split = blocks.split_state_dict(architecture, model.state_dict())
    x = torch.randn(2, 3, image_size, image_size)
    with torch.inference_mode():
        expected, out = model(x), x
        for index, (_, tensors) in enumerate(split):
            before = out.clone()
            inputs, out = out, blocks.build_block(architecture, index, tensors)(out)
            assert torch.equal(inputs, before), "a block changed its input"
    assert torch.equal(out, expected)


@pytest.mark.parametrize(("architecture", "image_size"), ONE_OF_EACH_FAMILY)
def test_measured_shapes_and_bytes_are_the_real_models(architecture, image_size):
    split = blocks.split_state_dict(architecture, models.get_model(architecture, weights=None).state_dict())
    x = torch.randn(1, 3, image_size, image_size)
    for index, (shape, (name, tensors)) in enumerate(zip(block_shapes(architecture, image_size), split, strict=True)):
        with torch.inference_mode():
            x = blocks.build_block(architecture, index, tensors)(x)
        assert shape.name == name
        assert shape.output_shape == tuple(x.shape[1:])
        assert shape.num_parameter_bytes == sum(t.numel() * t.element_size() for t in tensors.values())
    assert block_shapes(architecture, image_size)[-2].output_shape == (blocks.feature_dim(architecture),)


def test_flops_of_resnet18_at_224_are_the_published_figure():
    total = sum(shape.flops for shape in block_shapes("resnet18", 224))
    assert total == pytest.approx(2 * 1.814e9, rel=0.01)


def test_the_union_of_the_blocks_loads_into_torchvision_strictly():
    tensors = blocks.random_tensors("resnet18", num_classes=5, seed=3)
    union = {name: tensor for _, block in tensors for name, tensor in block.items()}
    models.get_model("resnet18", num_classes=5).load_state_dict(union, strict=True)


def test_random_tensors_follow_their_seed_alone():
    state = torch.random.get_rng_state()
    first, again, other = (blocks.random_tensors("resnet18", 5, seed) for seed in (1, 1, 2))
    assert all(
        torch.equal(a, b)
        for (_, x), (_, y) in zip(first, again, strict=True)
        for a, b in zip(x.values(), y.values(), strict=True)
    )
    assert not torch.equal(first[0][1]["conv1.weight"], other[0][1]["conv1.weight"])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_random_heads_follow_their_seed_alone():
    state = torch.random.get_rng_state()
    head, same, another = (blocks.random_head("mobilenet_v3_small", 4, seed) for seed in (1, 1, 2))
    assert torch.equal(head["classifier.3.weight"], same["classifier.3.weight"])
    assert not torch.equal(head["classifier.3.weight"], another["classifier.3.weight"])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sd: sd.pop("layer1.0.conv1.weight"), "1 missing \\(layer1.0.conv1.weight\\)"),
        (lambda sd: sd.update(extra=torch.zeros(1)), "1 unknown \\(extra\\)"),
        (lambda sd: sd.update({"conv1.weight": torch.zeros(3, 3)}), "conv1.weight: expected shape"),
        (lambda sd: sd.update({"fc.bias": torch.zeros(9)}), "one width"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, message):
    state_dict = dict(models.resnet18().state_dict())
    change(state_dict)
    with pytest.raises(WeightsError, match=message):
        blocks.split_state_dict("resnet18", state_dict)


def test_an_unknown_architecture_is_answered_with_the_nearest():
    with pytest.raises(ArchitectureError, match="did you mean 'resnet18'"):
        num_body_blocks("resnet_18")


def test_a_vision_transformer_rejects_other_image_sizes():
    with pytest.raises(ArchitectureError, match="224"):
        block_shapes("vit_b_32", 64)
