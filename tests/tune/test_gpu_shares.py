"""Shares of GPUs follow from measured peaks, and no trial is given less than its kind was seen to need."""

import pytest

from raysnap.config.train import TrainConfig
from raysnap.training.trial import Trial
from raysnap.tune.gpu_shares import GpuShares

GPU_BYTES = 10_000  # shares have a margin of a tenth


def trial(name: str, retrain_index: int | None = 2, *, architecture: str = "resnet18", **train) -> Trial:
    return Trial(
        id=name,
        role="finetune",
        architecture=architecture,
        dataset="shapes-shape-a",
        retrain_index=retrain_index,
        seed=0,
        train=TrainConfig(**train),
    )


def learnt(peak_bytes: int, retrain_index: int | None = 2, gpu_bytes: int = GPU_BYTES) -> GpuShares:
    """Return shares that know of one trial."""
    shares = GpuShares()
    first = trial("first", retrain_index)
    shares.start(first)
    shares.learn(first, peak_bytes, gpu_bytes)
    return shares


def test_the_first_of_a_kind_has_a_gpu_and_others_wait():
    shares = GpuShares()
    assert shares.share(trial("first")) == 1
    shares.start(trial("first"))
    assert shares.share(trial("second")) is None
    assert shares.share(trial("another kind", batch_size=128)) == 1


def test_others_get_the_measured_share_with_a_margin():
    assert learnt(2_000).share(trial("second", lr=0.5, epochs=9)) == 0.25


@pytest.mark.parametrize(
    ("peak_bytes", "share"),
    [(9, 0.0009), (909, 0.1), (910, 0.1111), (3_030, 0.3333), (4_546, 1), (9_999, 1), (20_000, 1)],
)
def test_as_many_shares_as_fit_fill_a_gpu(peak_bytes, share):
    assert learnt(peak_bytes).share(trial("second")) == share


def test_no_share_is_less_than_ray_counts():
    assert learnt(1, gpu_bytes=10**12).share(trial("second")) == 0.0001


def test_fewer_trained_blocks_take_the_share_of_more():
    shares = learnt(3_000, retrain_index=5)
    assert shares.share(trial("fewer", 4)) == shares.share(trial("as many", 5)) == 0.3333
    assert shares.share(trial("more", 6)) == 1
    assert shares.share(trial("all", None)) == 1


def test_the_smallest_share_that_is_surely_enough_counts():
    shares = learnt(4_000, retrain_index=None)
    deep = trial("deep", 6)
    shares.learn(deep, 2_000, GPU_BYTES)
    assert shares.share(trial("shallow", 3)) == 0.25
    assert shares.share(trial("deeper", 7)) == 0.5


@pytest.mark.parametrize(
    "train",
    [
        {"batch_size": 128},
        {"micro_batch_size": 8},
        {"optimizer": "sgd"},
        {"precision": "bfloat16"},
        {"channels_last": True},
        {"compile": True},
        {"views": 2},
        {"ema_decay": 0.9},
        {"mixup_alpha": 0.2},
    ],
)
def test_what_changes_memory_is_another_kind(train):
    assert learnt(2_000).share(trial("second", **train)) == 1


def test_a_peak_that_grows_later_raises_the_share():
    shares = learnt(2_000)
    shares.learn(trial("first"), 4_000, GPU_BYTES)
    shares.learn(trial("first"), 1_000, GPU_BYTES)
    assert shares.share(trial("second")) == 0.5


def test_a_trial_without_memory_gets_a_gpu_and_its_kind_more():
    shares = learnt(2_000)
    shares.run_out(trial("second"))
    assert shares.share(trial("second")) == 1
    assert shares.share(trial("third")) == 0.5
    for _ in range(9):
        shares.run_out(trial("second"))
    assert shares.share(trial("third")) == 1


def test_when_a_measuring_trial_fails_the_next_measures():
    shares = GpuShares()
    shares.start(trial("first"))
    shares.end(trial("first"))
    assert shares.share(trial("second")) == 1
