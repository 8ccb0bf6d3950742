"""Fine-tunes that take a moment: models of every family, items that differ in colour, and what a test compares."""

from pathlib import Path

import torch
from torch import nn

from raysnap.config.train import TrainConfig
from raysnap.models import blocks
from raysnap.models.architecture import architecture
from raysnap.models.tensor_bytes import block_digest
from raysnap.store.preprocessing import Preprocessing
from raysnap.training import finetune
from raysnap.training.feeds import LabelledItems
from raysnap.training.freezing import StartModel
from raysnap.training.prefix_cache import PrefixCache
from tests.support.hf_architectures import VISION

PREPROCESSING = Preprocessing(resize_size=36, image_size=32)
FAMILIES = [  # BatchNorm, dropout, stochastic depth, and none of them
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "regnet_x_400mf",
    "convnext_tiny",
    "swin_t",
    "vit_b_32",
]
OF_OTHER_LIBRARIES = [
    "timm/mobilenetv3_small_050",
    str(architecture("hf", "vit", VISION["vit"])),
    str(architecture("hf", "resnet", VISION["resnet"])),
]


def coloured_squares(num_items: int, seed: int) -> LabelledItems:
    """Items of two classes that differ in colour, under noise; larger crops repeat their pixels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_items) % 2
    pixels = torch.randint(0, 120, (num_items, 3, 36, 36), generator=generator, dtype=torch.uint8)
    pixels[labels == 1, 0] += 120

    def read(positions, crop_size):
        if crop_size > 36:
            return pixels[positions].repeat(1, 1, 7, 7)[:, :, :crop_size, :crop_size]
        edge = (36 - crop_size) // 2
        return pixels[positions][:, :, edge : edge + crop_size, edge : edge + crop_size]

    return LabelledItems(read, labels, digest=f"{num_items} coloured squares {seed}")


def splits(num_train: int = 24) -> dict[str, LabelledItems]:
    return {"train": coloured_squares(num_train, 0), "val": coloured_squares(10, 1), "test": coloured_squares(10, 2)}


def model_of(architecture: str) -> nn.Sequential:
    return blocks.build_model(architecture, [tensors for _, tensors in blocks.random_tensors(architecture, 2, 0)])


def digests_of(model) -> list[str]:
    return [block_digest(block.tensors()) for block in model]


def run(model, num_frozen, config=None, data=None, on_epoch=lambda entry, save: None, digests=None, **options):
    digests = digests or digests_of(model)
    config = config or TrainConfig(epochs=1, batch_size=8)
    options = {"seed": 0, "on_epoch": on_epoch} | options
    edge = 224 if any("encoder" in block.name for block in model) else 32
    preprocessing = Preprocessing(resize_size=edge + 4, image_size=edge)
    return finetune.finetune(StartModel(model, num_frozen, digests), data or splits(), preprocessing, config, **options)


def one_step(num_items=4) -> dict[str, LabelledItems]:
    return {"train": coloured_squares(num_items, 0), "val": coloured_squares(2, 1)}


def cache_in(folder: Path, depth: int) -> PrefixCache:
    return PrefixCache.beside(folder, depth, budget_bytes=10**9)


class Killed(Exception):
    pass


def without_times(history):
    return [{name: value for name, value in entry.items() if name != "epoch_s"} for entry in history]
