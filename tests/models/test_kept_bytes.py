"""What autograd keeps of a block is counted without computing anything, and is what a real training step keeps."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from raysnap.models.block_facts import block_shapes
from raysnap.models.blocks import block_names, block_skeleton

NUM_ITEMS = 4


def really_kept_bytes(architecture: str, image_size: int, num_frozen: int) -> int:
    """Return the bytes that a training step on the CPU keeps for its backward pass, weights left out."""
    blocks = [block_skeleton(architecture, index) for index in range(len(block_names(architecture)))]
    model = nn.Sequential(*blocks).to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.zero_()  # Swin looks tensors up by some of them
    for index, block in enumerate(model):
        block.requires_grad_(index >= num_frozen).train(index >= num_frozen)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = torch.rand(NUM_ITEMS, 3, image_size, image_size)
    with torch.no_grad():
        inputs = model[:num_frozen](images)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = functional.cross_entropy(model[num_frozen:](inputs), torch.zeros(NUM_ITEMS, dtype=torch.int64))
    loss.backward()
    return sum(kept.values())


@pytest.mark.parametrize(
    ("architecture", "image_size"),
    [("resnet18", 64), ("mobilenet_v2", 64), ("vit_b_32", 224), ("swin_t", 64), ("convnext_tiny", 64)],
)
def test_the_count_is_what_a_real_training_step_keeps(architecture, image_size):
    counted = NUM_ITEMS * sum(shape.kept_bytes for shape in block_shapes(architecture, image_size))
    assert counted == pytest.approx(really_kept_bytes(architecture, image_size, 0), rel=0.03)


@pytest.mark.parametrize(("architecture", "num_frozen"), [("resnet18", 3), ("mobilenet_v2", 10)])
def test_frozen_blocks_keep_only_what_the_trained_ones_get(architecture, num_frozen):
    shapes = block_shapes(architecture, 64)
    counted = shapes[num_frozen - 1].output_bytes + sum(shape.kept_bytes for shape in shapes[num_frozen:])
    assert NUM_ITEMS * counted == pytest.approx(really_kept_bytes(architecture, 64, num_frozen), rel=0.05)
