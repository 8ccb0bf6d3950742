"""What happens to pixels on the device, per batch: augmentation and normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import affine_grid, grid_sample

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CROP_AREA = (0.35, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)


def normalise(
    pixels_N3HW: torch.Tensor,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """uint8 pixels as `(pixels / 255 - mean) / std` per channel, computed in float32 and given as `dtype`.

    In float32 equal to torchvision's `ToDtype(float32, scale=True)` and `Normalize(mean, std)`.
    """
    mean_311, std_311 = (
        torch.tensor(values, dtype=torch.float32, device=pixels_N3HW.device).view(3, 1, 1) for values in (mean, std)
    )
    return pixels_N3HW.to(torch.float32).mul_(1 / 255).sub_(mean_311).div_(std_311).to(dtype)


def augment(pixels_N3HW: torch.Tensor, generator: torch.Generator, crop_size: int) -> torch.Tensor:
    """A random resized crop of each image, half of them mirrored: uint8 `[N, 3, crop_size, crop_size]`.

    Each image has its own crop of 35 to 100 % of the area with a side ratio of 3:4 to 4:3, sampled bilinearly. The
    random numbers are drawn on the generator's device, so one seed gives one result wherever the pixels are.
    """
    num_images, _, height, width = pixels_N3HW.shape
    draws_N5 = torch.rand((num_images, 5), generator=generator, device=generator.device).to(pixels_N3HW.device)
    area, aspect, shift_x, shift_y, mirror = draws_N5.unbind(1)
    area = CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * area
    low, high = (torch.tensor(value).log().item() for value in CROP_ASPECT)
    aspect = (low + (high - low) * aspect).exp()
    # Extents and centres in affine_grid's units, in which the image reaches from -1 to 1.
    extent_x = (area * aspect * height / width).sqrt().clamp(max=1.0)
    extent_y = (area / aspect * width / height).sqrt().clamp(max=1.0)
    theta_N23 = torch.zeros((num_images, 2, 3), device=pixels_N3HW.device)
    theta_N23[:, 0, 0] = torch.where(mirror < 0.5, -extent_x, extent_x)
    theta_N23[:, 0, 2] = (2 * shift_x - 1) * (1 - extent_x)
    theta_N23[:, 1, 1] = extent_y
    theta_N23[:, 1, 2] = (2 * shift_y - 1) * (1 - extent_y)
    grid = affine_grid(theta_N23, [num_images, 3, crop_size, crop_size], align_corners=False)
    crops = grid_sample(
        pixels_N3HW.to(torch.float32), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return crops.round_().clamp_(0, 255).to(torch.uint8)
