"""A finetune as a sweep: recipes before starts, each start with its own network, and no more than fits the time."""

import pytest

from raysnap.config.sweep import FinetuneConfig
from raysnap.datasets.dataset import open_dataset
from raysnap.planning import finetune as module
from raysnap.planning.finetune import fit_to_time, sweep_config, with_min_steps
from raysnap.planning.sweep import plan_sweep
from raysnap.runs.shortlist import ShortlistedStart, TimePlan
from raysnap.store.store import Store
from tests.support.image_folders import make_folder
from tests.support.search_stores import put, variant


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "photos", {"train/cat": 4, "train/dog": 4})


@pytest.fixture
def starts(tmp_path) -> list[ShortlistedStart]:
    store = Store.open(tmp_path / "store", create=True)
    made = (("resnet18", "deep"), ("mobilenet_v3_small", "small"))
    return [
        ShortlistedStart(put(store, name, variant(architecture, 0, 0), architecture), name, architecture, size)
        for (architecture, name), size in zip(made, (64, 32), strict=True)
    ]


def config_of(tmp_path, folder, **more) -> FinetuneConfig:
    places = {"store": tmp_path / "store", "run_dir": tmp_path / "run", "dataset": str(folder)}
    return FinetuneConfig.model_validate(places | more)


def test_recipes_come_before_starts_each_with_its_own_network(tmp_path, folder, starts):
    config = config_of(tmp_path, folder, preset="quick")
    trials = plan_sweep(sweep_config(config, folder, starts, 3)).trials
    keys = ("retrain", "train.layer_lrs", "base.weights")
    shown = [(*(one.point[key] for key in keys), one.architecture, one.image_size) for one in trials]
    assert shown == [
        (*recipe, *start)
        for recipe in (("quarter", "bold"), ("all", "gentle"), ("all", "bold"))
        for start in (("deep", "resnet18", 64), ("small", "mobilenet_v3_small", 32))
    ]
    assert {trial.train.epochs for trial in trials} == {3}


def test_the_first_recipe_leaves_most_of_a_pretrained_net_alone(tmp_path, folder, starts):
    for preset in ("quick", "good", "best"):
        first = plan_sweep(sweep_config(config_of(tmp_path, folder, preset=preset), folder, starts, 3)).trials[0]
        assert first.train.layer_lrs == (1e-3,) and first.retrain_index == 2


def test_whole_nets_are_retrained_with_rates_that_fall(tmp_path, folder, starts):
    for preset in ("quick", "good", "best"):
        sweep = sweep_config(config_of(tmp_path, folder, preset=preset), folder, starts, 3)
        whole = next(one for one in plan_sweep(sweep).trials if one.retrain_index == 8)
        assert whole.train.layer_lrs == (1e-3, 3e-4, 1e-4, 3e-5) and whole.train.batch_statistics == "keep"
    assert sweep.scheduler == "asha" and sweep.keep == "best"


def test_small_nets_get_no_more_rates_than_blocks(tmp_path, folder, starts, monkeypatch):
    monkeypatch.setattr(module, "num_body_blocks", lambda _: 1)
    space = sweep_config(config_of(tmp_path, folder), folder, starts, 3).model_dump(mode="json")["space"]
    assert all(len(rates) <= 2 for entry in space["train.layer_lrs"] for rates in entry["grid"].values())


@pytest.mark.parametrize("preset", ["quick", "good", "best"])
def test_a_net_of_two_blocks_fits_every_recipe(tmp_path, folder, starts, monkeypatch, preset):
    monkeypatch.setattr(module, "num_body_blocks", lambda _: 2)
    space = sweep_config(config_of(tmp_path, folder, preset=preset), folder, starts, 3).model_dump(mode="json")["space"]
    most = {"all": 3, "half": 2, "quarter": 1, "head": 1}
    entries = space["train.layer_lrs"]
    entries = entries if isinstance(entries, list) else [entries]
    assert all(len(rates) <= most[entry["when"]["retrain"]] for entry in entries for rates in entry["grid"].values())


def test_less_time_means_fewer_epochs_recipes_and_starts(tmp_path, folder, starts, monkeypatch):
    def forecast_s(_config, _folder, some, epochs, recipes=None) -> float:
        return 10.0 * len(some) * epochs * (0.5 if recipes else 1)

    monkeypatch.setattr(module, "forecast_s", forecast_s)
    config = config_of(tmp_path, folder)
    fits = {seconds: fit_to_time(config, folder, starts, seconds) for seconds in (1000, 240, 160, 79, 39, 19, 1)}
    assert {seconds: (fit.num_starts, fit.epochs, fit.recipes) for seconds, fit in fits.items()} == {
        1000: (2, 48, None),
        240: (2, 12, None),
        160: (2, 8, None),
        79: (2, 4, "quick"),
        39: (1, 4, "quick"),
        19: (1, 3, "quick"),
        1: (1, 2, "quick"),
    }
    assert all(fit.forecast_s <= seconds for seconds, fit in fits.items() if seconds > 1)
    assert fit_to_time(config_of(tmp_path, folder, train={"epochs": 1}), folder, starts, 1).epochs == 1
    assert fit_to_time(config_of(tmp_path, folder, train={"epochs": 9}), folder, starts, 1000).epochs == 9
    own = config_of(tmp_path, folder, space={"train.lr": {"grid": [0.1]}})
    assert fit_to_time(own, folder, starts, 1).recipes is None


@pytest.mark.parametrize(
    ("num_images", "more", "expected"),
    [
        (100, {}, (16, 40, 7)),
        (100, {"preset": "quick"}, (16, 15, 6)),
        (100, {"preset": "best"}, (16, 100, 5)),
        (400, {}, (16, 12, 2)),
        (100, {"min_steps": 30}, (32, 12, 2)),
        (100, {"min_steps": 50}, (16, 12, 2)),
        (100, {"num_train": 40}, (16, 67, 11)),
        (100, {"train": {"epochs": 3}}, (32, 3, 2)),
        (100, {"train": {"batch_size": 64}}, (64, 12, 2)),
        (100, {"train": {"batch_size": 64}, "min_steps": 50}, (16, 12, 2)),
        (100, {"train": {"batch_size": 4}, "min_steps": 400}, (4, 20, 3)),
    ],
)
def test_small_datasets_get_smaller_batches_and_more_epochs(tmp_path, num_images, more, expected):
    folder = make_folder(tmp_path / "photos", {"train/cat": num_images // 2, "train/dog": num_images // 2})
    config = with_min_steps(config_of(tmp_path, folder, **more), open_dataset(str(folder), tmp_path))
    assert (config.train.batch_size, config.train.epochs, config.grace_epochs) == expected


def test_a_dataset_yet_to_be_drawn_counts_as_it_will_be(tmp_path):
    config = config_of(tmp_path, "shapes-shape-a", shapes={"num_train": 80, "image_size": 32})
    assert with_min_steps(config, None).train.epochs == 40


def test_longer_fine_tunes_have_longer_grace(tmp_path, folder, starts):
    config = config_of(tmp_path, folder)
    graces = {epochs: sweep_config(config, folder, starts, epochs).grace_epochs for epochs in (1, 4, 12, 48)}
    assert graces == {1: 1, 4: 2, 12: 2, 48: 8}


def test_each_fine_tune_has_a_share_of_the_time(tmp_path, folder, starts, monkeypatch):
    monkeypatch.setattr(module, "num_cpus", lambda: 2)
    monkeypatch.setattr(module, "known_gpu_bytes", tuple)
    config = config_of(tmp_path, folder, preset="quick")
    plans = {seconds: TimePlan(200, 50, 10, 15, seconds, forecast_s=1) for seconds in (100, 1)}
    shares = {
        seconds: sweep_config(config, folder, starts, 3, plan).train.time_limit_s for seconds, plan in plans.items()
    }
    assert shares == {100: pytest.approx(0.9 * 100 * 2 / (0.6 * 6) - 1), 1: 1.0}, "ASHA stops 4 of 10"
    assert sweep_config(config, folder, starts, 3).train.time_limit_s is None
    few = config_of(tmp_path, folder, space={"train.lr": {"grid": [0.1, 0.01]}})
    limits_s = [sweep_config(few, folder, starts[:count], 3, plans[100]).train.time_limit_s for count in (1, 2)]
    assert limits_s == [pytest.approx(0.9 * 100 - 1), 50], "half at most where others wait"
    alone = config_of(tmp_path, folder, preset="quick", resources={"max_concurrent": 1})
    assert sweep_config(alone, folder, starts, 3, plans[100]).train.time_limit_s == pytest.approx(
        0.9 * 100 / (0.6 * 6) - 1
    )


def test_where_time_is_short_an_epoch_may_end_all_the_same(tmp_path, folder, starts):
    config = config_of(tmp_path, folder, preset="quick")
    long, short = (TimePlan(60, 15, 10, 15, 20, forecast_s=forecast_s) for forecast_s in (19, 45))
    assert (long.is_short, short.is_short) == (False, True)
    assert sweep_config(config, folder, starts, 2, long).time_budget_s == 20
    assert sweep_config(config, folder, starts, 2, short).time_budget_s == 2 * 45
    assert sweep_config(config, folder, starts, 2, short).train.time_limit_s < 20, "each ends with its next epoch"
