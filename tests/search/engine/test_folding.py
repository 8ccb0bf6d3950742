"""Blocks ready for inference: the same outputs without a batch norm, in every family, and stored tensors untouched."""

import pytest
import torch
from torch import nn

from raysnap.models import blocks
from raysnap.models.numerics import Numerics
from raysnap.search.engine.folding import build_inference_block, prepared_bytes
from tests.support.search_stores import body_with_used_batch_norms

CPU = torch.device("cpu")
# Its tensors are stored under other names than its modules have.
HF_VIT = 'hf/vit{"hidden_size":32,"image_size":64,"intermediate_size":64,"num_attention_heads":2,"num_hidden_layers":2}'
FAMILIES = (
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "regnet_y_400mf",
    "convnext_tiny",
    "swin_t",
    "vit_b_32",
    HF_VIT,
)


def held_bytes(block):
    """Return the bytes of the memory that the block's tensors keep from being freed; oneDNN's count as values."""
    tensors = (*block.parameters(), *block.buffers())
    plain = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors if not one.is_mkldnn}
    return sum(plain.values()) + sum(one.numel() * one.itemsize for one in tensors if one.is_mkldnn)


def build_body(architecture, size, body, numerics):
    """Return all blocks below the head as one module."""
    return nn.Sequential(*(build_inference_block(architecture, size, *pair, numerics) for pair in enumerate(body)))


@pytest.mark.parametrize(
    ("architecture", "precision"),
    [(family, "float32") for family in FAMILIES]
    + [(family, "fast_float32") for family in ("resnet18", "mobilenet_v2", "regnet_y_400mf", "convnext_tiny")],
)
def test_folded_models_give_their_libraries_features(architecture, precision):
    body = body_with_used_batch_norms(architecture)
    before = [{name: tensor.clone() for name, tensor in tensors.items()} for tensors in body]
    numerics = Numerics.for_inference(precision, CPU)
    size = 224 if architecture == "vit_b_32" else 64
    folded = build_body(architecture, size, body, numerics)
    foretold = [prepared_bytes(architecture, size, index, numerics) for index in range(len(body))]
    whole = blocks.build_model(architecture, body)
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = whole(images), folded(numerics.lay_out_images(images))
    assert torch.linalg.vector_norm(found - expected) <= 1e-5 * torch.linalg.vector_norm(expected)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert [held_bytes(block) for block in folded] == foretold
    assert all(torch.equal(old[name], new[name]) for old, new in zip(before, body, strict=True) for name in old)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_block_computes_in_the_precision_asked_for(precision):
    numerics = Numerics.for_inference(precision, CPU)
    block = build_inference_block("resnet18", 64, 1, body_with_used_batch_norms("resnet18")[1], numerics)
    floating = [value.dtype for value in (*block.parameters(), *block.buffers()) if value.is_floating_point()]
    assert set(floating) == {numerics.dtype} == {getattr(torch, precision)}
    assert held_bytes(block) == prepared_bytes("resnet18", 64, 1, numerics)
