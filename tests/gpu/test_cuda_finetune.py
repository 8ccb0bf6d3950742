"""Fine-tunes on a GPU, where there is one: the laws that hold on a CPU."""

from collections.abc import Iterator

import pytest
import torch

from raysnap import errors
from raysnap.config.train import TrainConfig
from raysnap.errors import OutOfMemory, TrainingDiverged
from raysnap.models.block_facts import num_body_blocks
from raysnap.training.freezing import StartModel
from raysnap.training.prefix_cache import PrefixCache
from tests.support.small_finetunes import (
    FAMILIES,
    Killed,
    coloured_squares,
    digests_of,
    model_of,
    one_step,
    run,
    splits,
    without_times,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CUDA = torch.device("cuda")


def on_gpu(architecture: str) -> torch.nn.Sequential:
    return model_of(architecture).to(CUDA)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_frozen_blocks_keep_digests_and_the_mistake_is_refused(architecture, monkeypatch):
    model = on_gpu(architecture)
    num_frozen = num_body_blocks(architecture)
    before = digests_of(model)
    run(model, num_frozen, data=one_step())
    after = digests_of(model)
    assert after[:num_frozen] == before[:num_frozen]
    assert after[-1] != before[-1]
    monkeypatch.setattr(StartModel, "freeze", lambda start: start.model.train())
    with pytest.raises(errors.FrozenBlockChanged, match="block stem should have stayed frozen"):
        run(model, num_frozen, data=one_step())


@pytest.mark.parametrize("precision", ["auto", "float16", "float32"])
def test_an_easy_task_is_learned(precision):
    config = TrainConfig(epochs=4, batch_size=8, lr=1e-3, precision=precision)
    result = run(on_gpu("resnet18"), 0, config)
    assert result.metrics["val_accuracy"] == result.metrics["test_accuracy"] == 1.0


@pytest.mark.parametrize(
    ("architecture", "num_frozen", "changes"),
    [
        ("resnet18", 0, {"views": 2}),
        ("efficientnet_b0", 14, {"views": None, "optimizer": "sgd"}),
        ("vit_b_32", 11, {"ema_decay": 0.9, "clip_norm": 0.5}),
        ("resnet18", 8, {"mixup_alpha": 0.4, "cutmix_alpha": 1.0, "micro_batch_size": 3, "precision": "float16"}),
    ],
)
def test_a_killed_fine_tune_resumes_as_if_undisturbed(tmp_path, architecture, num_frozen, changes):
    config = TrainConfig(**{"epochs": 3, "batch_size": 8, "deterministic": True, "checkpoint_every": 1} | changes)

    def save_and_die(entry, save):
        save(tmp_path)
        if entry["epoch"] == 2:
            raise Killed

    never, killed, resumed = (on_gpu(architecture) for _ in range(3))
    expected = run(never, num_frozen, config, one_step(16))
    with pytest.raises(Killed):
        run(killed, num_frozen, config, one_step(16), on_epoch=save_and_die)
    found = run(resumed, num_frozen, config, one_step(16), resume_dir=tmp_path)
    assert digests_of(resumed) == digests_of(never)
    assert without_times(found.history) == without_times(expected.history)


def test_cached_frozen_blocks_train_what_uncached_ones_do(tmp_path):
    config = TrainConfig(epochs=2, batch_size=8, lr=1e-4, views=2, precision="float32")
    cached, plain = (
        run(on_gpu("resnet18"), 8, config, one_step(16), prefix=prefix)
        for prefix in (PrefixCache.beside(tmp_path, 8, budget_bytes=10**9), None)
    )
    assert cached.history[0]["train_loss"] == pytest.approx(plain.history[0]["train_loss"], rel=1e-3)


def test_a_diverged_loss_stops_the_training_with_its_reason():
    config = TrainConfig(epochs=30, batch_size=8, lr=100, optimizer="sgd")
    with pytest.raises(TrainingDiverged, match="smaller train.lr than 100"):
        run(on_gpu("resnet18"), 0, config)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Half a gigabyte of the GPU's memory and no more."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2**29 / torch.cuda.get_device_properties(CUDA).total_memory)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_too_large_a_batch_is_named_and_leaves_memory_free(little_memory):
    model = on_gpu("resnet18")
    data = splits() | {"train": coloured_squares(4096, 0)}
    with pytest.raises(OutOfMemory, match="try a smaller train.batch_size"):
        run(model, 0, TrainConfig(epochs=1, batch_size=4096), data)
    run(model, 0, TrainConfig(epochs=1, batch_size=8))
