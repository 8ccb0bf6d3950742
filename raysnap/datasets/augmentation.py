"""Augmentation and normalisation of a batch of pixels, on the device.

Each image is augmented by five random numbers that are a function of (seed, epoch, item), so its view does not depend
on the batch around it. With `epoch` counted modulo K, an item has K fixed views.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CROP_AREA = (0.35, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)
NUM_DRAWS = 5

# A CPU works in steps so small that their memory is reused instead of faulted in again: 0.5 ms per image of 256 pixels
# instead of 1.3.
CPU_STEP_BYTES = 2 * 1024 * 1024


def normalise(
    pixels_N3HW: Tensor,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return uint8 pixels as `(pixels / 255 - mean) / std` per channel, computed in float32 and cast to `dtype`.

    In float32 the result equals torchvision's `ToDtype(float32, scale=True)` and `Normalize(mean, std)`.
    """
    mean_311, std_311 = (_per_channel(values, pixels_N3HW.device) for values in (mean, std))
    return pixels_N3HW.to(torch.float32).mul_(1 / 255).sub_(mean_311).div_(std_311).to(dtype)


def augment_and_normalise(
    pixels_N3HW: Tensor,
    draws_N5: Tensor,
    crop_size: int,
    crop_area: tuple[float, float] = CROP_AREA,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    out: Tensor | None = None,
) -> Tensor:
    """Crop, resize, mirror and normalise each uint8 image at random: `[N, 3, crop_size, crop_size]` of `dtype`.

    Each crop covers a share of the area in `crop_area` with an aspect ratio of 3:4 to 4:3, clipped to the image; half
    are mirrored. Sampling is bilinear without antialiasing, so crops that shrink to less than half look jagged: keep
    `resize_size` below twice `crop_size`.

    Args:
        draws_N5: the items' `item_draws`.
        out: a used batch of this shape, `dtype` and memory format to overwrite. On a CPU allocating a new one takes a
            third of the time.
    """
    num_images, _, height, width = pixels_N3HW.shape
    device = pixels_N3HW.device
    boxes = _crop_boxes(draws_N5.to(device), height, width, crop_area)
    shape = (num_images, 3, crop_size, crop_size)
    batch = torch.empty(shape, dtype=dtype, device=device, memory_format=memory_format) if out is None else out
    mean_311, std_311 = _per_channel(mean, device), _per_channel(std, device)
    scale_311, shift_311 = 1 / (255 * std_311), -mean_311 / std_311

    def fill(part: slice) -> None:
        with torch.inference_mode(batch.is_inference()):
            levels, grid = pixels_N3HW[part].to(torch.float32), _grid(boxes[part], crop_size)
            crops = grid_sample(levels, grid, mode="bilinear", padding_mode="border", align_corners=False)
            torch.addcmul(shift_311, crops, scale_311, out=batch[part])

    if device.type == "cpu":
        num_at_once = max(1, CPU_STEP_BYTES // (12 * height * width))
        _for_each(fill, [slice(start, start + num_at_once) for start in range(0, num_images, num_at_once)])
    else:
        fill(slice(None))
    return batch


def item_draws(seed: int, epoch: int, items: Sequence[int] | Tensor) -> Tensor:
    """Return each item's random numbers for an epoch: float32 `[len(items), 5]` in [0, 1), on the CPU.

    They are SplitMix64 (https://doi.org/10.1145/2714064.2660195) of (seed, epoch, item).
    """
    key = np.zeros(1, dtype=np.uint64)
    for number in (seed, epoch):
        key = _mixed(key ^ np.uint64(number & (2**64 - 1)))
    keys_N = _mixed(key ^ np.asarray(items, dtype=np.int64).astype(np.uint64))
    steps_5 = np.arange(1, NUM_DRAWS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits_N5 = _mixed(keys_N[:, None] + steps_5) >> np.uint64(40)
    return torch.from_numpy(bits_N5.astype(np.float32) * np.float32(2**-24))


def _for_each(task: Callable[[slice], None], parts: list[slice]) -> None:
    """Run `task` for every part, on threads of our own that torch does not subdivide.

    Torch's own threads wait for each other after each operation, which on a busy machine is ten times slower than one
    thread.
    """
    num_threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(task, parts))
    finally:
        torch.set_num_threads(num_threads)  # threads that start later would inherit the 1


def _per_channel(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)


def _crop_boxes(draws_N5: Tensor, height: int, width: int, crop_area: tuple[float, float]) -> Tensor:
    """Return centre and half extent in x, then in y, in grid_sample's units (the image is -1 to 1): `[N, 4]`.

    A mirrored crop has a negative extent in x.
    """
    area, aspect, shift_x, shift_y, mirror = draws_N5.unbind(1)
    area = crop_area[0] + (crop_area[1] - crop_area[0]) * area
    low, high = (math.log(value) for value in CROP_ASPECT)
    aspect = (low + (high - low) * aspect).exp()
    extent_x = (area * aspect * height / width).sqrt().clamp(max=1.0)
    extent_y = (area / aspect * width / height).sqrt().clamp(max=1.0)
    centre_x = (2 * shift_x - 1) * (1 - extent_x)
    centre_y = (2 * shift_y - 1) * (1 - extent_y)
    return torch.stack((centre_x, torch.where(mirror < 0.5, -extent_x, extent_x), centre_y, extent_y), dim=1)


def _grid(boxes_N4: Tensor, crop_size: int) -> Tensor:
    """Return where the pixels of each crop lie in its image, `[N, crop_size, crop_size, 2]`."""
    steps_S = (2 * torch.arange(crop_size, device=boxes_N4.device, dtype=torch.float32) + 1) / crop_size - 1
    grid = torch.empty((len(boxes_N4), crop_size, crop_size, 2), device=boxes_N4.device)
    grid[..., 0] = (boxes_N4[:, 0:1] + boxes_N4[:, 1:2] * steps_S)[:, None, :]
    grid[..., 1] = (boxes_N4[:, 2:3] + boxes_N4[:, 3:4] * steps_S)[:, :, None]
    return grid


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's output function to each number."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
