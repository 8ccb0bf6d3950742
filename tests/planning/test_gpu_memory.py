"""What a trial is forecast to take of a GPU follows from what it trains, how, and in which batches."""

import pytest

from raysnap.cluster.gpu_room import CONTEXT_BYTES
from raysnap.config.parts import ResourcesConfig
from raysnap.config.train import TrainConfig
from raysnap.errors import ConfigError
from raysnap.models.block_facts import block_shapes
from raysnap.planning.gpu_memory import TrainingItems, check_gpus, gpu_kinds, peak_bytes
from raysnap.training.trial import Trial

SHAPES = block_shapes("resnet18", 64)
ITEMS = TrainingItems(1000, {"train": 10_000, "val": 1_000, "test": 0})
WEIGHTS = sum(shape.num_parameter_bytes for shape in SHAPES)


def trial(retrain_index: int | None = None, architecture: str = "resnet18", **train) -> Trial:
    return Trial(
        id="a",
        role="finetune",
        architecture=architecture,
        dataset="shapes-shape-a",
        retrain_index=retrain_index,
        seed=0,
        train=TrainConfig(**({"precision": "float32", "optimizer": "sgd"} | train)),
    )


def peak(retrain_index: int | None = None, items: TrainingItems = ITEMS, num_workers: int = 0, **train) -> int:
    return peak_bytes(trial(retrain_index, **train), 64, items, num_workers)


def kept(batch_size: int) -> int:
    return batch_size * sum(shape.kept_bytes for shape in SHAPES)


def test_a_whole_model_keeps_its_copies_and_its_batch():
    assert peak(batch_size=256) == CONTEXT_BYTES + 4 * WEIGHTS + kept(256)


def test_adam_has_a_moment_more_and_an_average_a_copy():
    assert peak(optimizer="adam") - peak() == peak(ema_decay=0.9) - peak() == WEIGHTS


def test_half_precision_halves_the_batch_and_copies_weights():
    assert peak() - peak(precision="bfloat16") == kept(64) // 2 - WEIGHTS // 2
    assert peak(precision="auto") == peak(precision="float16")


def test_frozen_blocks_need_their_weights_only():
    trained = SHAPES[-1].num_parameter_bytes + SHAPES[-2].num_parameter_bytes
    forward = 256 * max(shape.kept_bytes + shape.output_bytes for shape in SHAPES)
    assert peak(1, batch_size=256) == CONTEXT_BYTES + WEIGHTS + 3 * trained + forward
    peaks = [peak(retrain_index) for retrain_index in (0, 4, 8, None)]
    assert peaks == sorted(peaks)


def test_a_head_has_as_many_weights_as_classes():
    ten = TrainingItems(10, ITEMS.num_items)
    assert peak() - peak(items=ten) == pytest.approx(4 * 0.99 * SHAPES[-1].num_parameter_bytes, abs=1)


def test_no_batch_is_larger_than_its_dataset():
    few = TrainingItems(1000, {"train": 40, "val": 10, "test": 10})
    assert peak(items=few, batch_size=4096) == peak(batch_size=40)


def test_micro_batches_and_workers_split_a_step():
    assert peak(batch_size=128, num_workers=2) == peak(batch_size=64) + WEIGHTS, "DDP's copy of the gradients"
    split = peak(batch_size=128, micro_batch_size=32)
    assert peak(batch_size=32) < split < peak(batch_size=128), "evaluation takes whole batches"


def test_kinds_are_told_apart_and_packed_where_a_size_is_known():
    trials = [trial(0), trial(8), trial(0, optimizer="adam"), trial(None), trial(0, batch_size=8)]
    items, packing = {"shapes-shape-a": ITEMS}, ResourcesConfig(pack_gpus=True)
    kinds = gpu_kinds(trials, 64, items, packing, [4 * 10**9, 8 * 10**9])
    found = [(kind.batch_size, kind.retrain_index, kind.num_trials) for kind in kinds]
    assert found == [(8, 0, 1), (64, 0, 2), (64, 8, 1), (64, None, 1)]
    assert kinds[1].peak_bytes == peak(0, optimizer="adam")
    assert [kind.per_gpu for kind in kinds] == [4 * 10**11 // (110 * kind.peak_bytes) for kind in kinds]
    assert {kind.per_gpu for kind in gpu_kinds(trials, 64, items, packing, [])} == {None}
    assert {kind.per_gpu for kind in gpu_kinds(trials, 64, items, ResourcesConfig(), [10**9])} == {None}


def test_trials_that_get_no_gpu_have_no_forecast():
    resources = ResourcesConfig(by_architecture={"resnet*": {"gpus": 0}})
    trials = [trial(), trial(architecture="mobilenet_v2")]
    kinds = gpu_kinds(trials, 64, {"shapes-shape-a": ITEMS}, resources, [])
    assert [kind.architecture for kind in kinds] == ["mobilenet_v2"]


def test_what_fits_no_gpu_is_refused_in_one_line():
    kinds = gpu_kinds([trial(), trial(batch_size=512)], 64, {"shapes-shape-a": ITEMS}, ResourcesConfig(), [])
    check_gpus(kinds, [])
    check_gpus(kinds, [10**9, 10**11])
    with pytest.raises(
        ConfigError, match=r"^train.batch_size 512: .* of resnet18 .* 64 px .* at most 1\.00.GB; [^\n]*$"
    ):
        check_gpus(kinds, [10**9])
