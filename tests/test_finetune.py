"""Fine-tuning: what is frozen stays byte-identical, what is trained learns, and the best epoch is the one kept."""

import pytest
import torch
from torch import nn

from raysnap import blocks, finetune
from raysnap.anatomy import num_body_blocks
from raysnap.config import TrainConfig
from raysnap.errors import FrozenBlockChanged, TrainingDiverged
from raysnap.finetune import LabelledPixels
from raysnap.manifest import Preprocessing
from raysnap.objects import block_digest

PREPROCESSING = Preprocessing(resize_size=36, image_size=32)
WITH_BATCHNORM_DROPOUT_OR_STOCHASTIC_DEPTH = ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny"]


def coloured_squares(num_items: int, seed: int) -> LabelledPixels:
    """Items of two classes that differ in colour, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_items) % 2
    pixels = torch.randint(0, 120, (num_items, 3, 36, 36), generator=generator, dtype=torch.uint8)
    pixels[labels == 1, 0] += 120

    def read(positions, crop_size):
        edge = (36 - crop_size) // 2
        return pixels[positions][:, :, edge : edge + crop_size, edge : edge + crop_size]

    return LabelledPixels(read, labels)


def splits(num_train: int = 24) -> dict[str, LabelledPixels]:
    return {"train": coloured_squares(num_train, 0), "val": coloured_squares(10, 1), "test": coloured_squares(10, 2)}


def model_of(architecture: str) -> nn.Sequential:
    return blocks.build_model(architecture, [tensors for _, tensors in blocks.random_tensors(architecture, 2, 0)])


def run(model, num_frozen, config=None, data=None, report=lambda epoch: None, digests=None):
    digests = digests or [block_digest(block.tensors()) for block in model]
    config = config or TrainConfig(epochs=1, batch_size=8)
    return finetune.finetune(
        model, num_frozen, data or splits(), PREPROCESSING, config, seed=0, base_digests=digests, report=report
    )


@pytest.mark.parametrize("architecture", WITH_BATCHNORM_DROPOUT_OR_STOCHASTIC_DEPTH)
@pytest.mark.parametrize("augment", [False, True])
def test_frozen_blocks_keep_their_digests_and_trained_ones_change(architecture, augment):
    model = model_of(architecture)
    num_frozen = 1 + num_body_blocks(architecture) - 1
    before = [block_digest(block.tensors()) for block in model]
    run(model, num_frozen, TrainConfig(epochs=1, batch_size=8, augment=augment))
    after = [block_digest(block.tensors()) for block in model]
    assert after[:num_frozen] == before[:num_frozen]
    assert all(a != b for a, b in zip(after[num_frozen:], before[num_frozen:], strict=True))


def test_the_published_mistake_of_training_mode_in_frozen_blocks_is_refused(monkeypatch):
    def freeze_gradients_only(model, num_frozen):
        for index, block in enumerate(model):
            block.requires_grad_(index >= num_frozen).train()

    monkeypatch.setattr(finetune, "freeze", freeze_gradients_only)
    with pytest.raises(FrozenBlockChanged, match="block stem was to stay frozen"):
        run(model_of("resnet18"), num_frozen=7)


def test_a_base_with_another_frozen_block_is_refused():
    model = model_of("resnet18")
    digests = [block_digest(block.tensors()) for block in model]
    digests[3] = "0" * 64
    with pytest.raises(FrozenBlockChanged, match=r"block layer2.0 .*expected digest 000000000000"):
        run(model, num_frozen=5, digests=digests)


def test_an_easy_task_is_learned_and_every_epoch_reported():
    told = []
    result = run(model_of("resnet18"), 0, TrainConfig(epochs=4, batch_size=8, lr=1e-3), report=told.append)
    assert told == result.history
    assert [entry["epoch"] for entry in told] == [1, 2, 3, 4]
    assert result.metrics["val_accuracy"] == 1.0
    assert result.metrics["test_accuracy"] == 1.0


def test_the_kept_weights_are_those_of_the_best_epoch(monkeypatch):
    told = iter([0.5, 0.9, 0.7, 0.1])
    seen = []

    def evaluate(trained, feed, batch_size):
        seen.append(block_digest(trained[-1].tensors()))
        accuracy = next(told)
        return {"loss": 1.0, "accuracy": accuracy, "top5_accuracy": 1.0}

    monkeypatch.setattr(finetune, "_evaluate", evaluate)
    model = model_of("resnet18")
    result = run(model, 8, TrainConfig(epochs=3, batch_size=8))
    assert result.metrics["best_epoch"] == 2
    assert result.metrics["val_accuracy"] == 0.9
    assert block_digest(model[-1].tensors()) == seen[1] != seen[2]
    assert seen[3] == seen[1], "test is looked at with the kept weights"


def test_equal_seeds_give_equal_bytes():
    digests = []
    for _ in range(2):
        model = model_of("efficientnet_b0")
        run(model, 12, TrainConfig(epochs=1, batch_size=8, augment=True))
        digests.append([block_digest(block.tensors()) for block in model])
    assert digests[0] == digests[1]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_every_optimizer_trains_only_what_is_not_frozen(optimizer):
    model = model_of("resnet18")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(model, 9, TrainConfig(epochs=1, batch_size=8, optimizer=optimizer, weight_decay=0.1))
    changed = {
        name.partition(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {"9"}


def test_a_diverged_loss_stops_the_training_with_its_reason():
    with pytest.raises(TrainingDiverged, match="smaller train.lr than 100"):
        run(model_of("resnet18"), 0, TrainConfig(epochs=30, batch_size=8, lr=100, optimizer="sgd"))


def test_a_last_batch_of_one_item_joins_its_neighbour_as_batchnorm_needs_two():
    result = run(model_of("resnet18"), 0, TrainConfig(epochs=1, batch_size=8), data=splits(num_train=17))
    assert result.history[0]["train_loss"] > 0


def test_evaluation_puts_every_blocks_mode_back_and_changes_nothing():
    model = model_of("resnet18")
    finetune.freeze(model, 4)
    before = [block_digest(block.tensors()) for block in model]
    scores = finetune.evaluate(model, coloured_squares(10, 1), PREPROCESSING, 4)
    assert [block.training for block in model] == [False] * 4 + [True] * 6
    assert [block_digest(block.tensors()) for block in model] == before
    assert 0 <= scores["accuracy"] <= scores["top5_accuracy"] == 1.0


def test_accuracy_and_loss_are_those_of_the_whole_split_whatever_the_batch():
    model = model_of("resnet18")
    items = coloured_squares(11, 1)
    whole, parts = (finetune.evaluate(model, items, PREPROCESSING, size) for size in (11, 3))
    assert whole["accuracy"] == parts["accuracy"]
    assert whole["loss"] == pytest.approx(parts["loss"], rel=1e-4)


@pytest.mark.parametrize("num_frozen", [1, 7, 9])
def test_frozen_blocks_that_run_once_give_the_weights_of_frozen_blocks_that_run_every_epoch(num_frozen, monkeypatch):
    once, always = model_of("resnet18"), model_of("resnet18")
    config = TrainConfig(epochs=2, batch_size=8)
    run(once, num_frozen, config)
    monkeypatch.setattr(finetune, "MAX_PREFIX_BYTES", 0)
    run(always, num_frozen, config)
    for one, other in zip(once.parameters(), always.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
