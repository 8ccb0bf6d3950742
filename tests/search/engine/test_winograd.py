"""Winograd's arithmetic: a convolution's own outputs for all sizes, chosen only where its tiles fit."""

import pytest
import torch
from torch import nn

from raysnap.search.engine.winograd import CHUNK_BYTES, convolve, suits_winograd, transform_kernels


def conv_of(num_inputs, num_outputs, **options):
    """Return a convolution of 3 x 3 kernels that is drawn from one seed."""
    torch.manual_seed(0)
    return nn.Conv2d(num_inputs, num_outputs, **{"kernel_size": 3, "padding": 1} | options).requires_grad_(False)


@pytest.mark.parametrize(
    ("num_images", "num_inputs", "num_outputs", "height", "width"),
    [(1, 3, 5, 1, 1), (2, 8, 4, 4, 4), (3, 5, 7, 9, 6), (2, 16, 16, 13, 7), (5, 128, 130, 28, 28), (1, 128, 128, 7, 5)],
)
def test_outputs_are_those_of_a_convolution(num_images, num_inputs, num_outputs, height, width):
    conv = conv_of(num_inputs, num_outputs)
    images = torch.rand(num_images, num_inputs, height, width).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = conv.double()(images.double())
        found = convolve(images, transform_kernels(conv.weight), conv.bias.float())
    assert found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_images_of_several_chunks_give_what_each_gives_alone():
    kernels, bias = transform_kernels(conv_of(8, 8).weight), torch.rand(8)
    images = torch.rand(CHUNK_BYTES // (4 * 36 * 7 * 7 * 8) * 2 + 3, 8, 28, 28)
    with torch.inference_mode():
        together, alone = convolve(images, kernels, bias), convolve(images[-1:], kernels, bias)
    torch.testing.assert_close(together[-1:], alone, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_equal_images_give_equal_bits():
    kernels, bias = transform_kernels(conv_of(32, 32).weight), torch.rand(32)
    images = torch.rand(4, 32, 14, 14)
    found = [convolve(images, kernels, bias) for _ in range(2)]
    convolve(torch.rand(2, 32, 30, 30), kernels, bias)  # leaves other values in the thread's memory
    assert torch.equal(found[0], found[1])
    assert torch.equal(convolve(images, kernels, bias), found[0])


@pytest.mark.parametrize("size", [4, 7, 8, 14, 16, 28, 56, (14, 7)])
def test_wide_convolutions_suit_it(size):
    assert suits_winograd(conv_of(128, 256), *(size if isinstance(size, tuple) else (size, size)))


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"stride": 2}, 28),
        ({"dilation": 2, "padding": 2}, 28),
        ({"groups": 2}, 28),
        ({"kernel_size": 1, "padding": 0}, 28),
        ({"kernel_size": 5, "padding": 2}, 28),
        ({"padding": 0}, 28),
        ({"padding_mode": "reflect"}, 28),
        ({}, 2),
        ({}, 5),
        ({}, 10),
    ],
)
def test_other_convolutions_do_not(options, size):
    assert not suits_winograd(conv_of(128, 128, **options), size, size)


def test_narrow_convolutions_do_not():
    assert not suits_winograd(conv_of(64, 128), 28, 28)
    assert not suits_winograd(conv_of(128, 64), 28, 28)
