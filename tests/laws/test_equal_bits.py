"""What `docs/numerics.md` says of torch: which outputs are equal to the last bit, and how far the others are apart."""

import pytest
import torch
from torch import nn
from torchvision.models import get_model
from torchvision.models.vision_transformer import VisionTransformer

NUM_ITEMS = 16


@pytest.fixture(scope="module", params=["resnet18", "vit"])
def model(request) -> nn.Module:
    torch.manual_seed(0)
    if request.param == "resnet18":
        return get_model("resnet18", num_classes=10).eval()
    vit = VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10)
    nn.init.normal_(vit.heads[-1].weight)
    return vit.eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(NUM_ITEMS, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_the_same_batch_gives_equal_bits(model, images):
    expected = model(images)
    assert torch.equal(model(images), expected)
    with torch.inference_mode():
        assert torch.equal(model(images), expected)


@torch.no_grad()
def test_other_batches_and_modes_differ_in_the_last_bits_only(model, images):
    expected = model(images)
    found = [torch.cat([model(batch) for batch in images.split(size)]) for size in (1, 7)]
    with torch.enable_grad():
        found.append(model(images).detach())
    for output in found:
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
