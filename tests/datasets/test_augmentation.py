"""Augmentation and normalisation on the device."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import Compose, Normalize, ToDtype

from raysnap.datasets.augmentation import (
    CPU_STEP_BYTES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    augment_and_normalise,
    item_draws,
    normalise,
)


def noise(num_images: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (num_images, 3, height, width), generator=torch.Generator().manual_seed(7), dtype=torch.uint8
    )


def augment(pixels: torch.Tensor, draws: torch.Tensor, crop_size: int, *crop_area: tuple[float, float]) -> torch.Tensor:
    """Return the crops as they would be seen, uint8."""
    levels = augment_and_normalise(pixels, draws, crop_size, *crop_area, mean=(0, 0, 0), std=(1 / 255,) * 3)
    return levels.round().clamp(0, 255).to(torch.uint8)


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
    once, again, other = (augment(pixels, item_draws(seed, 0, range(16)), 20) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert len({image.numpy().tobytes() for image in once}) == 16


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 48), (90, 33)])
@pytest.mark.parametrize("crop_size", [1, 16, 32, 40])
def test_crops_have_the_asked_extent_and_values_of_the_image(height, width, crop_size):
    pixels = noise(8, height, width) // 2 + 50
    crops = augment(pixels, item_draws(0, 0, range(8)), crop_size)
    assert crops.shape == (8, 3, crop_size, crop_size)
    assert crops.dtype == torch.uint8
    assert crops.min() >= pixels.min()
    assert crops.max() <= pixels.max()


def shown_boxes(crop_area: tuple[float, float], num_images: int = 300) -> tuple[torch.Tensor, ...]:
    """Left, right, top and bottom of many crops, as shares of the image; of a mirrored one left is beyond right."""
    ramp = torch.arange(0, 256, 2, dtype=torch.uint8)
    across = ramp.expand(num_images, 3, 128, 128)
    draws = item_draws(5, 0, range(num_images))
    edges = []
    for pixels, last in ((across, (0, -1)), (across.transpose(2, 3), (-1, 0))):
        crops = augment(pixels, draws, 64, crop_area)[:, 0].float()
        first, end = crops[:, 0, 0], crops[:, last[0], last[1]]
        margin = (end - first) / 63 / 2
        edges += [(first - margin) / 256 + 1 / 256, (end + margin) / 256 + 1 / 256]
    return tuple(edges)


@pytest.mark.parametrize("crop_area", [(0.35, 1.0), (0.08, 1.0), (0.5, 0.6), (1.0, 1.0)])
def test_crops_lie_in_the_image_with_the_right_area_and_aspect(crop_area):
    left, right, top, bottom = shown_boxes(crop_area)
    width, height = (right - left).abs(), bottom - top
    slack = 0.03
    for edge in (left, right, top, bottom):
        assert edge.min() > -slack and edge.max() < 1 + slack
    area, aspect = width * height, width / height
    # What would leave the image is cut: of crops of all of it, a side ratio of 4:3 leaves the root of three quarters.
    assert crop_area[0] * 0.75**0.5 - slack < area.min() and area.max() < crop_area[1] + slack
    assert aspect.min() > 0.68 and aspect.max() < 1.47
    assert aspect.min() < 0.9 and aspect.max() > 1.1


def test_half_of_the_crops_are_mirrored_and_none_is_upside_down():
    left, right, top, bottom = shown_boxes((0.35, 1.0))
    assert 0.45 < (right < left).float().mean() < 0.55
    assert (bottom > top).all()


def test_crops_are_spread_over_the_whole_image():
    left, right, top, bottom = shown_boxes((0.1, 0.3))
    for low, high in ((torch.minimum(left, right), torch.maximum(left, right)), (top, bottom)):
        share_below = low / (1 - (high - low))
        assert abs(share_below.mean() - 0.5) < 0.04
        assert share_below.quantile(0.1) < 0.17 and share_below.quantile(0.9) > 0.83


IDENTITY = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.9]])
MIRROR = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.1]])


@pytest.mark.parametrize("edge", [1, 7, 32, 224])
def test_a_crop_of_the_whole_image_is_the_image_or_its_mirror(edge):
    pixels = noise(1, edge, edge)
    assert torch.equal(augment(pixels, IDENTITY, edge, (1.0, 1.0)), pixels)
    assert torch.equal(augment(pixels, MIRROR, edge, (1.0, 1.0)), pixels.flip(3))


@pytest.mark.parametrize("edge", [24, 256])
def test_an_item_is_augmented_alike_in_every_batch(edge):
    pixels = noise(9, edge, edge)
    items = torch.tensor([5, 0, 77, 3, 10**6, 2, 1, 4, 8])
    together = augment(pixels, item_draws(1, 2, items), 20)
    order = torch.tensor([3, 8, 1, 0, 2, 7, 4, 6, 5])
    assert torch.equal(augment(pixels[order], item_draws(1, 2, items[order]), 20), together[order])
    for index in range(9):
        alone = augment(pixels[index : index + 1], item_draws(1, 2, items[index : index + 1]), 20)
        assert torch.equal(alone[0], together[index])


def test_a_batch_of_many_steps_equals_its_images_one_by_one():
    pixels = noise(40, 200, 100)
    assert 12 * pixels[0, 0].numel() * 40 > 4 * CPU_STEP_BYTES
    draws = item_draws(0, 0, range(40))
    alone = torch.cat([augment(pixels[i : i + 1], draws[i : i + 1], 32) for i in range(40)])
    assert torch.equal(augment(pixels, draws, 32), alone)


def test_draws_depend_on_seed_epoch_and_item_and_on_nothing_else():
    draws = {
        (seed, epoch): item_draws(seed, epoch, range(200)) for seed in (0, 1, -1, 2**63) for epoch in (0, 1, 10**9)
    }
    everything = torch.cat(list(draws.values()))
    assert everything.dtype == torch.float32 and everything.shape == (12 * 200, 5)
    assert len(everything.unique()) > 0.999 * everything.numel()
    assert everything.min() >= 0 and everything.max() < 1
    assert (everything.mean(0) - 0.5).abs().max() < 0.03
    assert (torch.corrcoef(everything.T) - torch.eye(5)).abs().max() < 0.08
    assert torch.equal(item_draws(1, 10**9, [7]), draws[1, 10**9][7:8])


DRAWN = [[1304493, 2595454, 3098794, 13033759, 15753651], [11207487, 6355884, 14172831, 13372886, 14798564]]


def test_draws_stay_what_they_were():
    """Cached views of past runs depend on these numbers."""
    expected = (np.array(DRAWN, dtype=np.float64) / 2**24).tolist()
    assert item_draws(7, 3, [0, 41]).double().tolist() == expected


def test_a_batch_is_normalised_as_pixels_that_are_not_augmented():
    pixels = noise(5, 32, 32)
    batch = augment_and_normalise(pixels, IDENTITY.expand(5, 5), 32, (1.0, 1.0))
    assert batch.dtype == torch.float32 and batch.is_contiguous()
    torch.testing.assert_close(batch, normalise(pixels), rtol=0, atol=1e-3)


def test_a_batch_comes_in_the_asked_type_and_layout():
    pixels, draws = noise(3, 30, 30), item_draws(0, 0, range(3))
    expected = augment_and_normalise(pixels, draws, 16)
    batch = augment_and_normalise(pixels, draws, 16, dtype=torch.bfloat16, memory_format=torch.channels_last)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch, expected.to(torch.bfloat16))
    assert augment_and_normalise(pixels[:0], draws[:0], 16).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_any_number_of_threads_gives_equal_bytes(num_threads):
    pixels, draws = noise(9, 200, 200), item_draws(0, 0, range(9))
    expected = augment_and_normalise(pixels, draws, 40)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        assert torch.equal(augment_and_normalise(pixels, draws, 40), expected)
        assert torch.get_num_threads() == num_threads
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == num_threads
    finally:
        torch.set_num_threads(before)


def test_a_batch_is_made_where_no_gradients_are_kept():
    pixels, draws = noise(3, 30, 30), item_draws(0, 0, range(3))
    expected = augment_and_normalise(pixels, draws, 16)
    assert not expected.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(augment_and_normalise(pixels, draws, 16), expected)


def test_a_used_batch_is_overwritten_with_the_same_images():
    pixels = torch.randint(0, 256, (5, 3, 40, 36), dtype=torch.uint8)
    draws = item_draws(0, 0, range(5))
    fresh = augment_and_normalise(pixels, draws, 32)
    used = torch.full((8, 3, 32, 32), torch.nan)
    assert torch.equal(augment_and_normalise(pixels, draws, 32, out=used[:5]), fresh)
    assert torch.equal(used[:5], fresh)
    assert used[5:].isnan().all()
