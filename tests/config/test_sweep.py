"""A sweep's configuration: keys of its space, what works together, and what follows from what is given."""

import pytest

from raysnap.config.load import load_config, validate
from raysnap.config.sweep import SweepConfig
from raysnap.config.yaml_files import to_yaml
from raysnap.errors import ConfigError


def sweep(**fields) -> SweepConfig:
    return validate({"datasets": ["a"], **fields}, SweepConfig, where="job.yaml")


RANGE = {"loguniform": [1e-4, 1e-1]}


@pytest.mark.parametrize(
    ("metric", "mode", "expected"),
    [(None, None, "max"), ("val_loss", None, "min"), ("val_macro_f1", None, "max"), ("val_loss", "max", "max")],
)
def test_the_mode_follows_from_the_metric(metric, mode, expected):
    given = {"metric": metric, "mode": mode}
    assert sweep(**{key: value for key, value in given.items() if value}).mode == expected


def test_nested_keys_of_a_space_are_dotted_ones():
    config = sweep(space={"train": {"lr": RANGE, "epochs": {"grid": [1, 2]}}, "base": {"weights": {"choice": ["a"]}}})
    assert list(config.space) == ["train.lr", "train.epochs", "base.weights"]


def test_a_grid_of_whole_sections_is_one_entry():
    config = sweep(space={"train": {"grid": [{"epochs": 1}, {"epochs": 2}]}})
    assert list(config.space) == ["train"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"space": {"train.lrr": RANGE}}, r"space: train\.lrr: unknown key; did you mean 'train\.lr'\?"),
        ({"space": {"train.lr": RANGE | {"when": {"datset": "a"}}}}, r"datset: unknown key; did you mean 'dataset'\?"),
        (
            {"scheduler": "asha", "resources": {"num_workers": 1}},
            r"`scheduler: asha` works only without worker groups: expected resources\.num_workers 0, found 1",
        ),
        (
            {"scheduler": "pbt", "search_algorithm": "optuna", "space": {"train.lr": RANGE}},
            "`scheduler: pbt` chooses values itself: expected `search_algorithm: random`, found 'optuna'",
        ),
        ({"scheduler": "pbt"}, r"`scheduler: pbt` copies weights .* only train\.lr, .*, found none"),
        (
            {"scheduler": "pbt", "space": {"train.epochs": {"randint": [1, 3]}}},
            r"`scheduler: pbt` copies weights .*, found train\.epochs",
        ),
        (
            {"scheduler": "pbt", "space": {"train.lr": RANGE}, "num_samples": 4, "resources": {"max_concurrent": 3}},
            "compares all trials at each step: expected resources.max_concurrent .* num_samples 4, found 3",
        ),
        (
            {"scheduler": "pbt", "space": {"train.lr": RANGE}, "resources": {"pack_gpus": True}},
            "`scheduler: pbt` pauses trials: expected `resources.pack_gpus` false, found true",
        ),
        (
            {"scheduler": "pbt", "space": {"train.lr": RANGE | {"when": {"dataset": "a"}}}},
            "`scheduler: pbt` perturbs every value of a trial: expected entries without `when`",
        ),
        (
            {"search_algorithm": "optuna", "datasets": ["a", "b"]},
            "expected one architecture, one dataset .*, found more than one to choose from",
        ),
        (
            {"search_algorithm": "optuna", "space": {"base.weights": {"choice": ["a"]}}},
            r"a space of train\.\* and retrain\.\* keys, found base\.weights",
        ),
    ],
)
def test_what_does_not_work_together_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message) as caught:
        sweep(**fields)
    assert "\n" not in str(caught.value)


SECTIONS = {"grid": {"pretrained": {"weights": "mine"}, "not pretrained": {"weights": "random"}}}


@pytest.mark.parametrize(
    ("space", "override", "chosen"),
    [
        ({"base.weights": {"grid": ["a", "b"]}}, "base.weights=c", "base.weights"),
        ({"base": SECTIONS}, "base.weights=c", "base"),
        ({"base": SECTIONS}, "base={weights: c}", "base"),
        ({"train.lr": RANGE}, "train={lr: 0.1, epochs: 2}", "train.lr"),
        ({"architecture": {"choice": ["resnet18", "resnet34"]}}, "architectures=[resnet50]", "architecture"),
        ({"dataset": {"choice": ["b", "c"]}}, "datasets=[d]", "dataset"),
    ],
)
def test_an_override_of_what_the_space_chooses_is_refused(tmp_path, space, override, chosen):
    path = tmp_path / "job.yaml"
    path.write_text(to_yaml({"kind": "sweep", "datasets": ["a"], "space": space}))
    with pytest.raises(ConfigError, match=f"no effect: add space.{chosen}=null to take {chosen} out of the space"):
        load_config(path, [override])
    config = load_config(path, [override, f"space.{chosen}=null"])
    assert config.space == {}


@pytest.mark.parametrize(
    ("space", "override"),
    [
        ({"train.lr": RANGE}, "train.epochs=2"),
        ({"train.lr": RANGE | {"when": {"dataset": "a"}}}, "train.lr=0.5"),
        ({"train.lr": RANGE}, "space.train.lr={grid: [0.1, 0.2]}"),
        ({"base": SECTIONS}, "architectures=[resnet34]"),
    ],
)
def test_other_overrides_of_a_sweep_are_taken(tmp_path, space, override):
    path = tmp_path / "job.yaml"
    path.write_text(to_yaml({"kind": "sweep", "datasets": ["a"], "space": space}))
    assert list(load_config(path, [override]).space) == list(space)
