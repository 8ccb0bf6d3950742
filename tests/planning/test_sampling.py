"""The trial list: the same for the same seed, fair to every pair, and drawn from the distributions that are named."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysnap.config.jobs import GenerateConfig
from raysnap.config.parts import RetrainConfig
from raysnap.errors import ArchitectureError, ConfigError
from raysnap.models.block_facts import num_body_blocks
from raysnap.planning.sampling import base_trials, draw_retrain_indices, sample_trials
from raysnap.store.manifest import is_ref_name
from raysnap.training.trial import derive_seed, slug

ARCHITECTURES = ("resnet18", "resnet50", "mobilenet_v2", "vit_b_16", "resnet152", "efficientnet_v2_l")
PINNED = [
    ("001-resnet18-pets-r2", 2043471749),
    ("002-resnet50-pets-r3", 1195996529),
    ("003-resnet18-birds-r3", 4277858504),
    ("004-resnet50-birds-r3", 3590057974),
]


def job(num_snapshots: int = 12, **fields) -> GenerateConfig:
    given = {"datasets": ("pets", "birds", "cars"), "architectures": ("resnet18", "resnet50")} | fields
    return GenerateConfig(num_snapshots=num_snapshots, **given)


def drawn(count: int = 20_000, architecture: str = "resnet18", seed: int = 0, **fields) -> list[int]:
    return draw_retrain_indices(RetrainConfig(**fields), architecture, count, np.random.default_rng(seed))


def test_the_seed_determines_the_trial_list():
    assert sample_trials(job()) == sample_trials(job())
    lists = [tuple(trial.retrain_index for trial in sample_trials(job(40, seed=seed))) for seed in range(5)]
    assert len(set(lists)) == 5
    seeds = {trial.seed for seed in range(5) for trial in sample_trials(job(40, seed=seed))}
    assert len(seeds) == 200


def test_the_trial_list_is_the_same_on_any_machine():
    assert [(trial.id, trial.seed) for trial in sample_trials(job(4))] == PINNED


@pytest.mark.parametrize("distribution", ["top_layers", "twenty_five_percent", "fifty_percent", "uniform"])
def test_more_snapshots_only_add_to_the_end(distribution):
    config = job(50, retrain=RetrainConfig(distribution=distribution))
    assert sample_trials(config.model_copy(update={"num_snapshots": 7})) == sample_trials(config)[:7]


def test_one_more_architecture_leaves_what_the_others_draw():
    alone = sample_trials(job(10, architectures=("resnet18",), datasets=("pets",)))
    beside = sample_trials(job(20, architectures=("resnet18", "resnet50"), datasets=("pets",)))
    assert [trial.retrain_index for trial in alone] == [
        trial.retrain_index for trial in beside if trial.architecture == "resnet18"
    ]


@settings(max_examples=30)
@given(num_snapshots=st.integers(1, 60), num_datasets=st.integers(1, 5), num_architectures=st.integers(1, 3))
def test_every_pair_of_architecture_and_dataset_gets_its_share(num_snapshots, num_datasets, num_architectures):
    datasets = tuple(f"data-{index}" for index in range(num_datasets))
    trials = sample_trials(job(num_snapshots, datasets=datasets, architectures=ARCHITECTURES[:num_architectures]))
    assert len(trials) == num_snapshots
    shares = Counter((trial.architecture, trial.dataset) for trial in trials)
    num_pairs = num_datasets * num_architectures
    assert set(shares.values()) <= {num_snapshots // num_pairs, -(-num_snapshots // num_pairs)}
    assert len(shares) == min(num_pairs, num_snapshots)


@settings(max_examples=50)
@given(dataset=st.text(min_size=1, max_size=300) | st.sampled_from([".", "..", "/", "a/b/", "../x y", "-", "…"]))
def test_every_id_is_a_ref_name_and_stands_once(dataset):
    trials = sample_trials(job(8, datasets=(dataset, "twin/" + dataset)))
    ids = [trial.id for trial in (*base_trials(job(8)), *trials)]
    assert len(set(ids)) == len(ids)
    assert all(is_ref_name(one) for one in ids)


def test_ids_tell_the_order_and_what_is_trained():
    trials = sample_trials(job(3, datasets=("/data/Oxford Pets",), architectures=("resnet18",)))
    assert [trial.id for trial in trials] == [
        f"{number:03d}-resnet18-Oxford_Pets-r{trial.retrain_index}" for number, trial in enumerate(trials, start=1)
    ]


def test_trials_are_trained_as_the_job_says():
    config = job(4, train={"epochs": 3, "lr": 0.5})
    for trial in sample_trials(config):
        assert (trial.role, trial.train) == ("finetune", config.train)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_not_retrained_is_frozen_with_the_stem(architecture):
    for trial in sample_trials(job(20, architectures=(architecture,), retrain={"distribution": "uniform"})):
        assert trial.num_frozen + trial.retrain_index == 1 + num_body_blocks(architecture)
        assert trial.num_frozen >= 1


@pytest.mark.parametrize("pretraining", [None, {"dataset": "some/where", "train": {"epochs": 9}}])
def test_each_architecture_gets_one_base(pretraining):
    bases = base_trials(job(base={"weights": "random", "pretraining": pretraining}))
    assert [trial.architecture for trial in bases] == ["resnet18", "resnet50"]
    for trial in bases:
        assert (trial.role, trial.retrain_index, trial.num_frozen) == ("base", None, 0)
        assert trial.dataset == (pretraining and "some/where")
        assert trial.train.epochs == (9 if pretraining else 5)
    assert bases[0].id == ("base-resnet18-where" if pretraining else "base-resnet18")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("distribution", "share", "spread"),
    [("top_layers", 0.10, 2), ("twenty_five_percent", 0.25, 2), ("fifty_percent", 0.50, 4)],
)
def test_a_truncated_normal_has_the_named_mean_and_spread(architecture, distribution, share, spread):
    indices = np.array(drawn(architecture=architecture, distribution=distribution))
    num_blocks = num_body_blocks(architecture)
    mean = share * (num_blocks + 1)
    assert indices.min() >= 0
    assert indices.max() <= num_blocks
    assert indices.mean() == pytest.approx(mean, rel=0.06)  # the cut at 0, two deviations away, lifts it by 3 %
    assert indices.std() == pytest.approx(np.hypot(mean / spread, 12**-0.5), rel=0.12)  # rounding adds 1/12


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_uniform_covers_every_index_evenly(architecture):
    counts = Counter(drawn(architecture=architecture, distribution="uniform"))
    num_slots = num_body_blocks(architecture) + 1
    assert sorted(counts) == list(range(num_slots))
    expected = 20_000 / num_slots
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_last_one_layer_is_always_one():
    assert set(drawn(100, distribution="last_one_layer")) == {1}


def test_fixed_values_take_turns():
    assert drawn(5, distribution="fixed", values=(8, 0, 3)) == [8, 0, 3, 8, 0]


@pytest.mark.parametrize(
    ("architecture", "freeze_fraction", "expected"),
    [("resnet18", 0, 8), ("resnet18", 1, 0), ("resnet18", 0.5, 4), ("resnet18", 0.9, 1), ("resnet50", 0.7, 5)],
)
def test_a_freeze_fraction_leaves_the_rest_to_retrain(architecture, freeze_fraction, expected):
    indices = drawn(3, architecture=architecture, distribution="fixed", freeze_fraction=freeze_fraction)
    assert indices == [expected] * 3


@given(count=st.integers(0, 50), longer=st.integers(0, 50), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_a_longer_draw_begins_with_the_shorter(count, longer, seed):
    for distribution in ("top_layers", "fifty_percent", "uniform"):
        whole = drawn(count + longer, seed=seed, distribution=distribution)
        assert drawn(count, seed=seed, distribution=distribution) == whole[:count]


def test_a_fixed_value_above_the_number_of_blocks_is_refused():
    config = job(retrain={"distribution": "fixed", "values": (4, 16)})
    with pytest.raises(ConfigError, match=r"retrain\.values: expected at most 8, the blocks of resnet18 .*found 16"):
        sample_trials(config)


def test_an_unknown_architecture_is_refused():
    with pytest.raises(ArchitectureError, match="did you mean 'resnet18'"):
        sample_trials(job(architectures=("resnet19",)))


@given(seed=st.integers(0, 2**32 - 1), parts=st.lists(st.integers() | st.text()))
def test_derived_seeds_fit_every_generator(seed, parts):
    derived = derive_seed(seed, *parts)
    assert 0 <= derived < 2**32
    assert derived == derive_seed(seed, *parts)


def test_purposes_get_seeds_of_their_own():
    assert len({derive_seed(seed, purpose) for seed in range(50) for purpose in ("trial", "base", "bench")}) == 150


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a/b/pets", "pets"), ("pets/", "pets"), ("my pets", "my_pets"), ("..", "unnamed"), ("", "unnamed")],
)
def test_a_slug_is_the_last_part_in_plain_characters(name, expected):
    assert slug(name) == expected


def test_every_dataset_gets_every_fixed_value():
    config = job(
        architectures=["resnet18", "resnet34"],
        datasets=["shapes-shape-a", "shapes-colour-a"],
        num_snapshots=8,
        retrain={"distribution": "fixed", "values": (1, 4)},
    )
    drawn_for = {(trial.architecture, trial.dataset, trial.retrain_index) for trial in sample_trials(config)}
    assert len(drawn_for) == 8


def test_trials_of_all_blocks_retrain_the_stem_if_asked():
    retrain = {"distribution": "fixed", "values": (8, 7)}
    frozen = sample_trials(job(4, architectures=("resnet18",), datasets=("pets",), retrain=RetrainConfig(**retrain)))
    config = job(4, architectures=("resnet18",), datasets=("pets",), retrain=RetrainConfig(**retrain, stem=True))
    trials = sample_trials(config)
    assert [trial.num_frozen for trial in frozen] == [1, 2, 1, 2]
    assert [trial.num_frozen for trial in trials] == [0, 2, 0, 2]
    assert [trial.id for trial in trials][:2] == ["001-resnet18-pets-rall", "002-resnet18-pets-r7"]
    assert [trial.seed for trial in trials] == [trial.seed for trial in frozen]
