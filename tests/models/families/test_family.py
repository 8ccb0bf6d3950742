"""A library's own model, built around stored tensors."""

import pytest
import torch
from torchvision import models

from raysnap.models import blocks
from raysnap.models.families.family import build
from raysnap.store.preprocessing import Preprocessing
from raysnap.store.store import Store

NUM_CLASSES = 3
FAMILIES = [
    ("resnet18", models.ResNet, 32),
    ("mobilenet_v2", models.MobileNetV2, 32),
    ("mobilenet_v3_small", models.MobileNetV3, 32),
    ("efficientnet_b0", models.EfficientNet, 32),
    ("regnet_y_400mf", models.RegNet, 32),
    ("vit_b_32", models.VisionTransformer, 224),
    ("swin_v2_t", models.SwinTransformer, 64),
    ("convnext_tiny", models.ConvNeXt, 32),
]


def state_dict_of(architecture: str) -> dict[str, torch.Tensor]:
    split = blocks.random_tensors(architecture, NUM_CLASSES, seed=0)
    return {name: tensor for _, block in split for name, tensor in block.items()}


@pytest.mark.parametrize(("architecture", "family", "image_size"), FAMILIES)
def test_the_model_is_torchvisions_own_with_these_weights(architecture, family, image_size):
    tensors = state_dict_of(architecture)
    model = build(architecture, NUM_CLASSES, tensors)
    expected = models.get_model(architecture, weights=None, num_classes=NUM_CLASSES).eval()
    expected.load_state_dict(tensors, strict=True)
    images = torch.randn(2, 3, image_size, image_size)
    with torch.inference_mode():
        assert torch.equal(model(images), expected(images))
    assert type(model) is family and not model.training


def test_every_tensor_of_the_model_is_real():
    model = build("swin_v2_t", NUM_CLASSES, state_dict_of("swin_v2_t"))
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize(
    "change", [lambda tensors: tensors.pop("fc.bias"), lambda tensors: tensors.update(x=torch.ones(1))]
)
def test_weights_of_another_model_are_rejected(change):
    tensors = state_dict_of("resnet18")
    change(tensors)
    with pytest.raises(RuntimeError, match="state_dict"):
        build("resnet18", NUM_CLASSES, tensors)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.open(tmp_path / "store", create=True)


def put_model(store: Store, seed: int = 0) -> str:
    split = blocks.random_tensors("mobilenet_v3_small", NUM_CLASSES, seed)
    preprocessing = Preprocessing.cropping(32)
    return store.put_snapshot(
        architecture="mobilenet_v3_small",
        blocks=split,
        num_classes=NUM_CLASSES,
        preprocessing=preprocessing,
        name="mine",
    ).manifest.id


def test_a_stored_snapshot_loads_bit_for_bit(store):
    put_model(store)
    model = store.load_model("mine")
    expected = state_dict_of("mobilenet_v3_small")
    assert {name: tensor.tolist() for name, tensor in model.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in expected.items()
    }


def test_a_loaded_model_trains_and_leaves_the_store_alone(store):
    put_model(store)
    model = store.load_model("mine").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(4, 3, 32, 32)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.state_dict()["classifier.3.bias"], store.read_state_dict("mine")["classifier.3.bias"])
    assert store.verify()["ok"]
