"""Spaces: the same points for the same seed, every combination once, conditions, and mistakes reported early."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, truncnorm

from raysnap.config.load import dump_yaml, find_config, load_config
from raysnap.config.sweep import SweepConfig
from raysnap.errors import ConfigError
from raysnap.models.block_facts import num_body_blocks
from raysnap.planning.points import MAX_TRIALS, point_trial, sample_points
from raysnap.planning.sweep import plan_sweep
from raysnap.store.manifest import is_ref_name


def job(space: dict | None = None, **fields) -> SweepConfig:
    return SweepConfig.model_validate({"datasets": ["shapes-shape-a"], "image_size": 32, "space": space or {}} | fields)


def trials(config: SweepConfig) -> list:
    points = sample_points(config)
    return [point_trial(config, point, number, len(points))[0] for number, point in enumerate(points, start=1)]


def shown(config: SweepConfig) -> list[dict]:
    return [point.shown for point in sample_points(config)]


def refusal(config: SweepConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        trials(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_grids_combine_in_order_the_last_changing_first():
    found = shown(job({"train.lr": {"grid": [0.1, 0.2]}, "train.optimizer": {"grid": ["adam", "sgd"]}}))
    assert [(one["train.lr"], one["train.optimizer"]) for one in found] == [
        (0.1, "adam"),
        (0.1, "sgd"),
        (0.2, "adam"),
        (0.2, "sgd"),
    ]


def test_lists_are_grids_unless_the_space_says_otherwise():
    several = {"architectures": ["resnet18", "resnet34"], "datasets": ["shapes-shape-a", "shapes-shape-b"]}
    found = trials(job({"train.lr": {"grid": [0.1, 0.2]}}, **several))
    assert len({(one.architecture, one.dataset, one.train.lr) for one in found}) == len(found) == 8
    alone = trials(job({"architecture": {"choice": ["resnet34"]}}, **several))
    assert {one.architecture for one in alone} == {"resnet34"}


def test_trials_of_one_sample_share_a_seed():
    found = trials(job({"train.lr": {"grid": [0.1, 0.2]}}, num_samples=3))
    assert [(one.sample, one.train.lr) for one in found] == [(s, lr) for s in (1, 2, 3) for lr in (0.1, 0.2)]
    assert [len({one.seed for one in found if one.sample == sample}) for sample in (1, 2, 3)] == [1, 1, 1]
    assert len({one.seed for one in found}) == 3


PINNED = (0.00673592, 0.456706, 3, 1, "adam")
RANDOM_SPACE = {
    "train.lr": {"loguniform": [1e-4, 1e-1]},
    "train.weight_decay": {"uniform": [0, 0.5]},
    "train.epochs": {"randint": [2, 5]},
    "retrain.index": {"truncated_normal": {"mean": 2, "deviation": 2, "low": 0, "high": 8}},
    "train.optimizer": {"choice": ["adam", "sgd"]},
}


def test_the_same_seed_gives_the_same_points_on_any_machine():
    assert trials(job(RANDOM_SPACE, num_samples=20)) == trials(job(RANDOM_SPACE, num_samples=20))
    assert shown(job(RANDOM_SPACE, num_samples=20)) != shown(job(RANDOM_SPACE, num_samples=20, seed=1))
    assert shown(job(RANDOM_SPACE))[0] == {
        "train.lr": PINNED[0],
        "train.weight_decay": PINNED[1],
        "train.epochs": PINNED[2],
        "retrain.index": PINNED[3],
        "train.optimizer": PINNED[4],
    }


def test_more_samples_and_more_keys_leave_what_the_others_draw():
    some = shown(job(RANDOM_SPACE, num_samples=5))
    assert shown(job(RANDOM_SPACE, num_samples=9))[:5] == some
    more = shown(job(RANDOM_SPACE | {"train.label_smoothing": {"uniform": [0, 0.1]}}, num_samples=5))
    assert [{key: one[key] for key in some[0]} for one in more] == some


def test_draws_are_those_that_their_names_say():
    found = shown(job(RANDOM_SPACE, num_samples=2000))
    values = {key: np.array([one[key] for one in found]) for key in RANDOM_SPACE}
    assert kstest(np.log10(values["train.lr"]), "uniform", (-4, 3)).pvalue > 0.001
    assert kstest(values["train.weight_decay"], "uniform", (0, 0.5)).pvalue > 0.001
    assert set(Counter(values["train.epochs"])) == {2, 3, 4, 5}
    assert min(Counter(values["train.epochs"]).values()) > 400
    assert min(Counter(values["train.optimizer"]).values()) > 900
    expected = np.diff(truncnorm(-1, 3, loc=2, scale=2).cdf([0, 0.5, *np.arange(1.5, 8), 8]))
    counts = Counter(values["retrain.index"])
    assert [counts[index] / 2000 for index in range(9)] == pytest.approx(expected, abs=0.04)


def test_a_value_without_a_met_condition_keeps_its_own():
    space = {
        "train.momentum": {"when": {"train.optimizer": "sgd"}, "grid": [0.8, 0.9]},
        "train.lr": [
            {"when": {"train.optimizer": "sgd"}, "uniform": [0.1, 0.2]},
            {"when": {"train.optimizer": ["adam", "adamw"]}, "loguniform": [1e-5, 1e-3]},
        ],
        "train.optimizer": {"grid": ["adam", "sgd"]},
    }
    found = trials(job(space, train={"momentum": 0.5}))
    assert [(one.train.optimizer, one.train.momentum) for one in found] == [("adam", 0.5), ("sgd", 0.8), ("sgd", 0.9)]
    assert [0.1 <= one.train.lr <= 0.2 for one in found] == [False, True, True]
    assert 1e-5 <= found[0].train.lr <= 1e-3
    assert ["train.momentum" in one.point for one in found] == [False, True, True]


def test_conditions_see_the_configuration_itself_and_labels():
    space = {
        "base": {
            "grid": {"warm": {"weights": "random", "pretraining": {"dataset": "x"}}, "cold": {"weights": "random"}}
        },
        "train.lr": {"when": {"base": "cold", "train.optimizer": "adam"}, "grid": [0.5]},
    }
    assert [one.train.lr for one in trials(job(space))] == [1e-3, 0.5]
    assert [one.train.lr for one in trials(job(space, train={"optimizer": "sgd"}))] == [1e-3, 1e-3]


def test_a_grid_may_hang_on_chance():
    space = {
        "train.optimizer": {"choice": ["adam", "sgd"]},
        "train.momentum": {"when": {"train.optimizer": "sgd"}, "grid": [0.8, 0.9]},
    }
    found = shown(job(space, num_samples=40))
    counts = Counter(one["train.optimizer"] for one in found)
    assert counts["sgd"] % 2 == 0 and counts["adam"] + counts["sgd"] // 2 == 40
    assert Counter(one.get("train.momentum") for one in found)[0.8] == counts["sgd"] // 2


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    num_samples=st.integers(1, 3),
    condition=st.integers(0, 3),
)
def test_every_combination_occurs_once_under_a_valid_ref_name(sizes, num_samples, condition):
    keys = ["train.lr", "train.momentum", "train.weight_decay", "train.label_smoothing"]
    space = {key: {"grid": [0.1 + 0.01 * n for n in range(size)]} for key, size in zip(keys, sizes, strict=False)}
    found = trials(job(space, num_samples=num_samples))
    assert len(found) == num_samples * math.prod(sizes)
    assert len({(one.sample, *one.point.values()) for one in found}) == len(found)
    ids = [one.id for one in found]
    assert sorted(set(ids)) == ids
    assert all(is_ref_name(one) for one in ids)


@pytest.mark.parametrize(
    ("space", "values"),
    [
        ({"train.lr": {"grid": [1e-3]}}, {"lr": 0.001}),
        ({"train.layer_lrs": {"grid": [[1e-3, 1e-4], None]}}, {"layer_lrs": (1e-3, 1e-4)}),
        ({"train.compile": {"grid": [True, False]}}, {"compile": True}),
        ({"train": {"grid": {"long": {"epochs": 9}, "short": {"epochs": 1}}}}, {"epochs": 9}),
    ],
)
def test_any_field_takes_any_value_that_it_takes_elsewhere(space, values):
    assert {key: getattr(trials(job(space))[0].train, key) for key in values} == values


def test_an_override_of_a_key_of_the_space_takes_its_place(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        "datasets: [a]\nspace:\n  train.lr: {grid: [0.1, 0.2]}\n  train.momentum: {grid: [0.5]}\n", encoding="utf-8"
    )
    overrides = ["space.train.lr={grid: [0.3]}", "space.base.weights={choice: [random]}"]
    config = load_config(path, overrides, SweepConfig)
    assert list(config.space) == ["train.lr", "train.momentum", "base.weights"]
    assert config.space["train.lr"][0].grid == (0.3,)
    with pytest.raises(ConfigError, match=r"train\.lrr: unknown key; did you mean 'train\.lr'"):
        load_config(path, ["space.train.lrr={grid: [0.3]}"], SweepConfig)


def test_a_dumped_sweep_loads_equal_with_the_same_points(tmp_path):
    space = RANDOM_SPACE | {
        "base": {"grid": {"warm": {"weights": "a"}, "cold": {"weights": "random"}}},
        "train.momentum": [{"when": {"base": "warm"}, "grid": [0.1, 0.2]}, {"choice": [0.3]}],
    }
    config = job(space, num_samples=2, metric="val_loss")
    path = tmp_path / "dumped.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8")
    loaded = load_config(path, [], SweepConfig)
    assert loaded == config
    assert loaded.mode == "min"
    assert sample_points(loaded) == sample_points(config)


@pytest.mark.parametrize(("fraction", "index"), [(0.7, 5), (0.8, 3), (0.9, 2)])
def test_a_freeze_fraction_is_a_retrain_index(fraction, index):
    (trial,) = trials(job({"retrain.freeze_fraction": {"grid": [fraction]}}, architectures=["resnet50"]))
    assert trial.retrain_index == index == round((1 - fraction) * num_body_blocks("resnet50"))


@pytest.mark.parametrize(
    ("space", "fields", "message"),
    [
        ({"train.lr": {"grid": [0.1, -0.1]}}, {}, "space: trial 2 (train.lr=-0.1): train.lr: expected more than 0"),
        ({"train.epochs": {"grid": [0]}}, {}, "train.epochs: expected at least 1, found 0"),
        ({"train.optimizer": {"grid": ["adm"]}}, {}, "found 'adm'; did you mean 'adam'?"),
        ({"train.lr": {"grid": ["fast"]}}, {}, "train.lr: expected a number, found 'fast'"),
        ({"base": {"grid": [{"wieghts": "random"}]}}, {}, "base.wieghts: unknown key; did you mean 'weights'?"),
        ({"retrain.index": {"grid": [9]}}, {}, "retrain.index: expected at most 8, the blocks of resnet18"),
        ({"retrain.index": {"grid": [1]}}, {"retrain": {"freeze_fraction": 0.5}}, "found both"),
        (
            {"train.layer_lrs": {"grid": [[1e-3, 1e-4, 1e-5]]}, "retrain.index": {"grid": [1]}},
            {},
            "expected at most one rate for each of the 2 trained blocks, found 3",
        ),
        (
            {f"train.{key}": {"grid": list(range(1, 101))} for key in ("lr", "epochs", "batch_size")},
            {},
            "found up to 1,000,000",
        ),
        (
            {"train.lr": {"uniform": [0.1, 1]}},
            {"num_samples": 10_000, "datasets": ["a", "b"]},
            f"at most {MAX_TRIALS:,}",
        ),
        (
            {
                "train.lr": {"when": {"train.momentum": 0.5}, "grid": [0.1]},
                "train.momentum": {"when": {"train.lr": 0.1}, "grid": [0.5]},
            },
            {},
            "keys that depend on each other: train.lr, train.momentum",
        ),
    ],
)
def test_a_point_that_does_not_fit_is_one_line(space, fields, message):
    assert message in refusal(job(space, **fields))


# Plans


def test_every_start_of_the_points_is_a_base_of_its_trials(tmp_path):
    space = {
        "base": {
            "grid": {
                "warm": {"weights": "random", "pretraining": {"dataset": "shapes-shape-b"}},
                "cold": {"weights": "random"},
            }
        },
        "train.lr": {"grid": [0.1, 0.2]},
    }
    plan = plan_sweep(job(space, store=tmp_path / "store", data_dir=tmp_path))
    assert [(base.id, base.dataset) for base in plan.bases] == [
        ("base-1-resnet18-shapes-shape-b", "shapes-shape-b"),
        ("base-2-resnet18", None),
    ]
    assert [trial.base_key for trial in plan.trials] == [plan.bases[n].id for n in (0, 0, 1, 1)]
    assert list(plan.datasets) == ["shapes-shape-b", "shapes-shape-a"]
    assert not list(tmp_path.iterdir())


def test_pbt_saves_at_each_perturbation_and_needs_four_trials(tmp_path):
    fields = {"scheduler": "pbt", "perturb_epochs": 3, "store": tmp_path / "s", "data_dir": tmp_path}
    space = {"train.lr": {"loguniform": [1e-4, 1e-1]}}
    plan = plan_sweep(job(space, num_samples=4, **fields))
    assert {trial.train.checkpoint_every for trial in plan.trials} == {3}
    with pytest.raises(ConfigError, match="num_samples: `scheduler: pbt` needs at least 4 trials, found 3"):
        plan_sweep(job(space, num_samples=3, **fields))


STUDIES = {
    "fashion_mnist_grid": (8, {"resnet50"}, {64}, {10}),
    "inaturalist_freeze": (12, {"resnet50"}, {32, 64}, {5, 7}),
    "caltech101_layerwise": (2, {"resnet18"}, {64}, {30}),
}


@pytest.mark.parametrize("study", STUDIES)
def test_a_shipped_sweep_and_its_small_sibling_ask_the_same(study):
    num_trials, architectures, batch_sizes, epochs = STUDIES[study]
    config = load_config(find_config(study), [], SweepConfig)
    found = trials(config)
    assert len(found) == num_trials
    assert {one.architecture for one in found} == architectures
    assert {one.train.batch_size for one in found} == batch_sizes
    assert {one.train.epochs for one in found} == epochs
    small = load_config(find_config(f"{study}_small"), [], SweepConfig)
    assert list(small.space) == list(config.space)
    assert len(trials(small)) == num_trials
    assert all(Path(name).name.startswith("shapes-") for name in small.datasets)


def test_the_three_studies_are_told_as_published():
    grid = trials(load_config(find_config("fashion_mnist_grid"), [], SweepConfig))
    assert {(one.train.optimizer, one.train.weight_decay, one.train.momentum) for one in grid} == {
        ("adam", 0.0, 0.9),
        ("sgd", 0.1, 0.9),
    }
    assert {one.train.lr for one in grid} == {0.001}
    assert {one.retrain_index for one in grid} == {0, 3}
    freeze = load_config(find_config("inaturalist_freeze"), [], SweepConfig)
    assert freeze.image_size == 224
    assert {one.retrain_index for one in trials(freeze)} == {5, 3, 2}
    layerwise = trials(load_config(find_config("caltech101_layerwise"), [], SweepConfig))
    assert layerwise[0].train.layer_lrs == (1e-3, 1e-4, 1e-5, 1e-6)
    assert {(one.train.patience, one.train.monitor) for one in layerwise} == {(3, "val_loss")}


def test_a_trials_name_holds_no_configuration():
    network = 'hf/vit{"hidden_size":32,"image_size":32,"intermediate_size":64,"num_attention_heads":2}'
    for fields in ({"architectures": [network]}, {"space": {"architecture": {"grid": [network, "resnet18"]}}}):
        config = job(**{"architectures": [network]} | fields)
        names = [trial.id for trial in trials(config)]
        assert names[0].startswith("001-hf-vit-") and all(len(name) < 40 for name in names)
