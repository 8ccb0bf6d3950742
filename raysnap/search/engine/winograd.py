"""Convolve in float32 with a quarter of the products: Winograd's F(4x4, 3x3), for 3 x 3 kernels that move by one pixel.

A tile of 4 x 4 outputs takes 36 products per pair of channels, where a direct convolution takes 144 (Lavin and Gray,
"Fast Algorithms for Convolutional Neural Networks", 2015, section 4.3, https://arxiv.org/abs/1509.09308). The
transforms are matrix products too. All runs in chunks that a core's cache holds, in memory that each thread reuses:
the page faults of new memory would take what the products save.
"""

from __future__ import annotations

import itertools
import threading
from functools import cache

import torch
from torch import Tensor, nn

TILE = 4
PATCH = TILE + 2  # edge of the inputs that a tile of outputs depends on
NUM_PRODUCTS = PATCH**2  # per tile and pair of channels
CHUNK_BYTES = 4_000_000  # of transformed inputs: a core's cache holds them, and their matrices are large enough
MIN_CHANNELS = 128  # with 64 the transforms take what the products save
MAX_PRODUCTS_PER_OUTPUT = 3.0  # of 9; more where the last tiles are mostly outside, as for 5 x 5 or 10 x 10 pixels

_OF_INPUTS = (
    (4.0, 0.0, -5.0, 0.0, 1.0, 0.0),
    (0.0, -4.0, -4.0, 1.0, 1.0, 0.0),
    (0.0, 4.0, -4.0, -1.0, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0),
    (0.0, 2.0, -1.0, -2.0, 1.0, 0.0),
    (0.0, 4.0, 0.0, -5.0, 0.0, 1.0),
)
_OF_KERNELS = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)
_OF_OUTPUTS = (
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (0.0, 1.0, -1.0, 2.0, -2.0, 0.0),
    (0.0, 1.0, 1.0, 4.0, 4.0, 0.0),
    (0.0, 1.0, -1.0, 8.0, -8.0, 1.0),
)
_ADDED_TO_ALL = PATCH + 1  # which of the 36 products goes into every output of its tile once


def suits_winograd(conv: nn.Conv2d, height: int, width: int) -> bool:
    """Return whether this arithmetic is the faster one for a convolution of images of that size."""
    is_plain = (conv.kernel_size, conv.stride, conv.dilation, conv.groups) == ((3, 3), (1, 1), (1, 1), 1)
    is_padded = conv.padding == (1, 1) and conv.padding_mode == "zeros"
    num_products = NUM_PRODUCTS * -(-height // TILE) * -(-width // TILE)
    saves = num_products <= MAX_PRODUCTS_PER_OUTPUT * height * width
    return is_plain and is_padded and saves and min(conv.in_channels, conv.out_channels) >= MIN_CHANNELS


def transform_kernels(weight_KC33: Tensor) -> Tensor:
    """Return kernels as `convolve` takes them, float32 `[36, C, K]`: four times the bytes."""
    num_outputs, num_inputs = weight_KC33.shape[:2]
    taps = weight_KC33.float().permute(2, 3, 1, 0).reshape(9, num_inputs * num_outputs)
    return (_twice(_OF_KERNELS) @ taps).view(NUM_PRODUCTS, num_inputs, num_outputs)


def convolve(images_NCHW: Tensor, kernels: Tensor, bias_K: Tensor | None) -> Tensor:
    """Convolve float32 images, padded by one pixel, with transformed kernels; the output's channels are last."""
    num_images, _, height, width = images_NCHW.shape
    images_NHWC = images_NCHW.permute(0, 2, 3, 1)
    output_NHWK = images_NCHW.new_empty(num_images, height, width, kernels.shape[2])
    num_rows, num_columns = -(-height // TILE), -(-width // TILE)
    image_bytes = 4 * NUM_PRODUCTS * num_rows * num_columns * max(kernels.shape[1:])
    num_chunks = -(-num_images // max(1, CHUNK_BYTES // image_bytes))
    edges = [num_images * number // num_chunks for number in range(num_chunks + 1)]
    for start, stop in itertools.pairwise(edges):
        _convolve_chunk(images_NHWC[start:stop], kernels, bias_K, output_NHWK[start:stop], num_rows, num_columns)
    return output_NHWK.permute(0, 3, 1, 2)


def _convolve_chunk(
    images_NHWC: Tensor, kernels: Tensor, bias_K: Tensor | None, output_NHWK: Tensor, num_rows: int, num_columns: int
) -> None:
    num_images, height, width, num_inputs = images_NHWC.shape
    num_outputs = kernels.shape[2]
    tiles = (num_images, num_rows, num_columns)
    num_tiles = num_images * num_rows * num_columns
    padded = _scratch("padded", num_images, TILE * num_rows + 2, TILE * num_columns + 2, num_inputs)
    padded[:, 0].zero_()
    padded[:, height + 1 :].zero_()
    padded[:, 1 : height + 1, 0].zero_()
    padded[:, 1 : height + 1, width + 1 :].zero_()
    padded[:, 1 : height + 1, 1 : width + 1] = images_NHWC
    image, row, column, channel = padded.stride()
    patches = padded.as_strided(
        (PATCH, PATCH, *tiles, num_inputs), (row, column, image, TILE * row, TILE * column, channel)
    )
    gathered = _scratch("gathered", *patches.shape).copy_(patches)
    inputs = _scratch("inputs", NUM_PRODUCTS, num_tiles * num_inputs)
    torch.mm(_twice(_OF_INPUTS), gathered.view(NUM_PRODUCTS, -1), out=inputs)
    products = _scratch("gathered", NUM_PRODUCTS, num_tiles, num_outputs)
    torch.bmm(inputs.view(NUM_PRODUCTS, num_tiles, num_inputs), kernels, out=products)
    if bias_K is not None:
        products[_ADDED_TO_ALL] += bias_K
    outputs = _scratch("outputs", TILE**2, num_tiles * num_outputs)
    torch.mm(_twice(_OF_OUTPUTS), products.view(NUM_PRODUCTS, -1), out=outputs)
    tiled = outputs.view(TILE, TILE, *tiles, num_outputs).permute(2, 3, 0, 4, 1, 5)
    if height % TILE == 0 and width % TILE == 0:
        output_NHWK.view(tiled.shape).copy_(tiled)
    else:
        whole = _scratch("inputs", *tiled.shape).copy_(tiled).view(num_images, TILE * num_rows, -1, num_outputs)
        output_NHWK.copy_(whole[:, :height, :width])


@cache
def _twice(transform: tuple[tuple[float, ...], ...]) -> Tensor:
    """Return the matrix that transforms the rows and the columns of a flattened patch, float32."""
    matrix = torch.tensor(transform, dtype=torch.float64)
    return torch.kron(matrix, matrix).float()


class _Memory(threading.local):
    """One thread's memory by name, as large as its largest use."""

    def __init__(self) -> None:
        self.held: dict[str, Tensor] = {}


_memory = _Memory()


def _scratch(name: str, *shape: int) -> Tensor:
    """Return this thread's memory of that name, float32; what it held is lost."""
    num_values = torch.Size(shape).numel()
    held = _memory.held.get(name)
    if held is None or held.numel() < num_values:
        held = _memory.held[name] = torch.empty(num_values)
    return held[:num_values].view(shape)
