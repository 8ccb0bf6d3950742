"""Augmentation and normalisation on the device."""

import pytest
import torch
from torchvision.transforms.v2 import Compose, Normalize, ToDtype

from raysnap.batches import IMAGENET_MEAN, IMAGENET_STD, augment, normalise


def noise(num_images: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (num_images, 3, height, width), generator=seeded(7), dtype=torch.uint8)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_normalised_pixels_equal_torchvisions_bit_for_bit():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    expected = Compose([ToDtype(torch.float32, scale=True), Normalize(IMAGENET_MEAN, IMAGENET_STD)])(pixels)
    assert torch.equal(normalise(pixels), expected)
    assert torch.equal(normalise(pixels, dtype=torch.bfloat16), expected.to(torch.bfloat16))


def test_normalising_leaves_the_pixels_alone():
    pixels = noise(2, 8, 8)
    before = pixels.clone()
    normalise(pixels, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert torch.equal(pixels, before)


def test_one_seed_gives_one_augmentation_and_each_image_its_own():
    pixels = noise(1, 24, 24).expand(16, 3, 24, 24)
    once, again, other = (augment(pixels, seeded(seed), 20) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert len({image.numpy().tobytes() for image in once}) == 16


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 48), (90, 33)])
@pytest.mark.parametrize("crop_size", [1, 16, 32, 40])
def test_crops_have_the_asked_extent_and_values_of_the_image(height, width, crop_size):
    pixels = noise(8, height, width) // 2 + 50
    crops = augment(pixels, seeded(0), crop_size)
    assert crops.shape == (8, 3, crop_size, crop_size)
    assert crops.dtype == torch.uint8
    assert crops.min() >= pixels.min()
    assert crops.max() <= pixels.max()


def test_a_crop_shows_35_to_100_percent_of_the_image_and_half_are_mirrored():
    ramp = torch.arange(0, 256, 2, dtype=torch.uint8)
    across = ramp.expand(400, 3, 128, 128)
    down = across.transpose(2, 3)
    extents = []
    for pixels in (across, down):
        crops = augment(pixels, seeded(5), 64).float()
        corners = crops[:, 0, 0, 0], crops[:, 0, -1, -1]
        extents.append((corners[1] - corners[0]) / 2 / 128 * 64 / 63)
    width, height = extents
    assert 0.4 < (width < 0).float().mean() < 0.6
    assert (height > 0).all()
    area, aspect = width.abs() * height, width.abs() / height
    assert 0.3 < area.min() < 0.42
    assert area.max() > 0.85
    assert aspect.min() > 0.7
    assert aspect.max() < 1.4
