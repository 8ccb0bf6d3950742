"""Rewritten blocks: every kind of convolution gives what torch's own gives, in float32 and in bfloat16."""

import pytest
import torch
from torch import nn

from raysnap.models.block import Block
from raysnap.models.numerics import Numerics
from raysnap.search.engine import fusing
from raysnap.search.engine.folding import build_inference_block
from raysnap.search.engine.fusing import (
    FewPixelsConv2d,
    Fused,
    PackedConv2d,
    PackedLinear,
    SideBySideConv2d,
    WinogradConv2d,
    fuse,
)
from tests.support.search_stores import body_with_used_batch_norms

CPU = torch.device("cpu")
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.02}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request):
    if request.param == torch.bfloat16 and not Numerics.for_inference("bfloat16", CPU).is_fused:
        pytest.skip("this CPU has no fused layers for bfloat16")
    return request.param


def fused_copy(model, size, dtype):
    """Return a model of one sequence as it is rewritten for images of that size."""
    block = Block("a block", [("", nn.Sequential(*model).requires_grad_(False))])
    sizes = {path: size for path, module in block.named_modules() if isinstance(module, nn.Conv2d)}
    fuse(block, sizes, dtype)
    for module in block.modules():
        if isinstance(module, Fused):
            module.pack()
    return block.steps[0]


KINDS = [
    (WinogradConv2d, (128, 128), {"padding": 1}, (7, 15)),
    (FewPixelsConv2d, (24, 40), {"padding": 1}, (2, 2)),
    (FewPixelsConv2d, (24, 40), {"padding": 1, "stride": 2}, (3, 4)),
    (FewPixelsConv2d, (128, 128), {"padding": (0, 1), "bias": False}, (3, 4)),
    (PackedConv2d, (128, 128), {"padding": 1, "stride": 2}, (14, 14)),
    (PackedConv2d, (128, 128), {"padding": 2, "dilation": 2}, (9, 11)),
    (PackedConv2d, (128, 128), {"padding": 1, "groups": 32}, (8, 8)),
    (PackedConv2d, (64, 64), {"padding": 1, "groups": 64, "stride": 2}, (13, 7)),
    (PackedConv2d, (3, 16), {"padding": 3, "kernel_size": 7, "stride": 2, "bias": False}, (33, 32)),
    (nn.Conv2d, (16, 16), {"padding": 1, "padding_mode": "reflect"}, (8, 8)),
]


@pytest.mark.parametrize(("kind", "channels", "options", "size"), KINDS)
def test_a_convolution_gives_what_torchs_gives(kind, channels, options, size, dtype):
    check_convolution(kind, channels, options, size, nn.ReLU(inplace=True), dtype)


@pytest.mark.parametrize("activation", [None, nn.ReLU6(), nn.SiLU(), nn.Hardswish(), nn.GELU(), nn.Tanh()])
@pytest.mark.parametrize("number", [0, 1, 4])
def test_every_activation_is_applied(number, activation):
    check_convolution(*KINDS[number], activation, torch.float32)


def check_convolution(kind, channels, options, size, activation, dtype):
    """Check the outputs of a convolution, rewritten with the activation after it, and what it becomes."""
    torch.manual_seed(0)
    conv = nn.Conv2d(*channels, **{"kernel_size": 3} | options)
    model = nn.Sequential(conv, nn.Identity(), *([activation] if activation else [])).requires_grad_(False).to(dtype)
    images = torch.rand(3, channels[0], *size).to(dtype, memory_format=torch.channels_last)
    fused = fused_copy(model, size, dtype)
    if kind is not WinogradConv2d or dtype == torch.float32:
        assert isinstance(fused[0], kind)
    with torch.inference_mode():
        expected, found = model(images), fused(images)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found.float() - expected.float()).abs().max() <= TOLERANCES[dtype] * expected.float().abs().max()


@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize(("stride", "size"), [(1, (7, 7)), (1, (12, 5)), (2, (14, 13)), (2, (9, 14))])
def test_images_side_by_side_do_not_touch(stride, size, has_residual, dtype, monkeypatch):
    monkeypatch.setattr(fusing, "_has_tiles", lambda: True)
    torch.manual_seed(0)
    conv = nn.Conv2d(256, 512, 3, stride, 1).requires_grad_(False).to(dtype)
    fused = fused_copy(nn.Sequential(conv, nn.ReLU()), size, dtype)[0]
    assert isinstance(fused, SideBySideConv2d) == (dtype == torch.bfloat16)
    images = torch.rand(5, 256, *size).to(dtype, memory_format=torch.channels_last)
    images[1::2] *= 100  # so that what a neighbour would add stands out
    with torch.inference_mode():
        outputs = conv(images)
        residual = torch.rand_like(outputs) if has_residual else None
        expected = torch.relu(outputs if residual is None else outputs + residual)
        found = fused(images, residual)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(found.float(), expected.float(), strict=True):
        assert (one - other).abs().max() <= TOLERANCES[dtype] * other.abs().max()


def test_a_linear_layer_gives_what_torchs_gives(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Dropout(), nn.Linear(96, 48)).requires_grad_(False)
    model = model.to(dtype).eval()
    tokens = torch.rand(3, 50, 48).to(dtype)
    fused = fused_copy(model, (1, 1), dtype)
    assert isinstance(fused[0], PackedLinear) == (dtype != torch.float32)
    with torch.inference_mode():
        expected, found = model(tokens), fused(tokens)
    assert (found.float() - expected.float()).abs().max() <= TOLERANCES[dtype] * expected.float().abs().max()


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_residual_blocks_add_and_activate_in_float32(architecture):
    body = body_with_used_batch_norms(architecture)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    outputs = {}
    with torch.inference_mode():
        for precision in ("float32", "fast_float32"):
            numerics = Numerics.for_inference(precision, CPU)
            outputs[precision] = [numerics.lay_out_images(images)]
            for index, tensors in enumerate(body):
                block = build_inference_block(architecture, 64, index, tensors, numerics)
                outputs[precision].append(block(outputs["float32"][index]))
    for expected, found in zip(outputs["float32"], outputs["fast_float32"], strict=True):
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("index", [2, 6, 8])
def test_images_handed_over_in_another_layout_give_equal_bits(index, dtype):
    precision = "fast_float32" if dtype == torch.float32 else "bfloat16"
    tensors = body_with_used_batch_norms("resnet18")[index]
    block = build_inference_block("resnet18", 64, index, tensors, Numerics.for_inference(precision, CPU))
    channels, size = {2: (64, 16), 6: (256, 4), 8: (512, 2)}[index]
    images = torch.rand(3, channels, size, size).to(dtype)
    with torch.inference_mode():
        assert torch.equal(block(images), block(images.contiguous(memory_format=torch.channels_last)))


def test_kernels_for_winograd_take_four_times_the_bytes():
    tensors = body_with_used_batch_norms("resnet18")[4]
    own, fast = (
        build_inference_block("resnet18", 64, 4, tensors, Numerics.for_inference(precision, CPU))
        for precision in ("float32", "fast_float32")
    )
    num_bytes = [sum(value.nbytes for value in block.parameters()) for block in (own, fast)]
    assert num_bytes[1] == pytest.approx(4 * num_bytes[0], rel=0.01)
