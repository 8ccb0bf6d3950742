"""What a job will take is said before it starts, and close to what comes."""

import shutil
from types import SimpleNamespace

import pytest

from raysnap.config.jobs import GenerateConfig
from raysnap.datasets.shapes import draw_task
from raysnap.errors import ConfigError, DataError
from raysnap.models.block_facts import block_shapes
from raysnap.models.blocks import random_tensors
from raysnap.planning import forecast as forecast_module
from raysnap.planning.forecast import check_room, forecast
from raysnap.planning.generate import plan_generate
from raysnap.store.preprocessing import Preprocessing
from raysnap.store.store import Store


def job(directory, **changes) -> GenerateConfig:
    settings = {
        "run_dir": directory / "run",
        "store": directory / "store",
        "data_dir": directory / "data",
        "datasets": ["shapes-shape-a"],
        "num_snapshots": 2,
        "image_size": 32,
        "shapes": {"image_size": 36, "num_train": 40, "num_val": 0, "num_test": 8},
        "train": {"epochs": 3},
        "retrain": {"distribution": "fixed", "values": [0, 8]},
    }
    return GenerateConfig.model_validate(settings | changes)


def forecast_of(config: GenerateConfig) -> forecast_module.Forecast:
    return forecast(config, plan_generate(config))


def test_flops_are_one_forward_and_two_of_what_is_trained(tmp_path):
    found = forecast_of(job(tmp_path, num_snapshots=1, prefix_cache_bytes=0))
    *body, head = (shape.flops for shape in block_shapes("resnet18", 32))
    head *= 4 / 1000
    forward = sum(body) + head
    assert found.train_flops == pytest.approx(3 * (32 * (forward + 2 * head) + 8 * forward) + 8 * forward)
    assert (found.num_trials, found.num_epochs) == (1, 3)
    assert found.cpu_s > 1


def test_cached_outputs_are_computed_once_for_all_trials(tmp_path):
    *frozen, _ = block_shapes("resnet18", 32)
    head_flops = block_shapes("resnet18", 32)[-1].flops * 4 / 1000
    for num_snapshots in (1, 2):
        config = job(tmp_path, num_snapshots=num_snapshots, retrain={"distribution": "fixed", "values": [0]})
        found = forecast_of(config)
        trained = 3 * (32 * 3 * head_flops + 8 * head_flops) + 8 * head_flops
        assert found.train_flops == pytest.approx(48 * sum(one.flops for one in frozen) + num_snapshots * trained)
        assert found.prefix_bytes == 48 * frozen[-1].output_bytes


def test_shared_blocks_count_once(tmp_path):
    found = forecast_of(job(tmp_path))
    stem_bytes, *others, widest_bytes = (shape.num_parameter_bytes for shape in block_shapes("resnet18", 32))
    head_bytes = widest_bytes * 4 // 1000
    model_bytes = stem_bytes + sum(others) + head_bytes
    assert found.copied_bytes == pytest.approx(3 * model_bytes, abs=3)
    assert found.store_bytes == pytest.approx(model_bytes + sum(others) + 2 * head_bytes, abs=3)


def test_bases_of_the_store_add_nothing_to_it(tmp_path):
    known = job(tmp_path, num_snapshots=1, retrain={"distribution": "fixed", "values": [0]})
    blocks = random_tensors("resnet18", 4, 0)
    Store.open(known.store, create=True).put_snapshot(
        architecture="resnet18", blocks=blocks, num_classes=4, name="mine"
    )
    of_store = known.model_copy(update={"base": known.base.model_copy(update={"weights": "mine"})})
    head_bytes = block_shapes("resnet18", 32)[-1].num_parameter_bytes * 4 // 1000
    assert forecast_of(of_store).store_bytes == pytest.approx(head_bytes, abs=1)
    assert forecast_of(known).store_bytes > 1000 * head_bytes


def test_pixels_are_those_of_the_items_that_are_used(tmp_path):
    all_bytes = forecast_of(job(tmp_path)).pixel_bytes
    edge = Preprocessing.cropping(32).resize_size
    assert all_bytes == 48 * 3 * edge * (edge + 1)
    assert forecast_of(job(tmp_path, num_train=4, num_val=2, num_test=2)).pixel_bytes == all_bytes * 8 // 48


def test_generated_and_missing_datasets_are_counted_alike(tmp_path):
    config = job(tmp_path)
    before = forecast_of(config)
    draw_task("shapes-shape-a", config.data_dir / "shapes-shape-a", config.shapes)
    after = forecast_of(config)
    assert (before.to_draw, after.to_draw) == (("shapes-shape-a",), ())
    assert (before.train_flops, before.pixel_bytes) == (after.train_flops, after.pixel_bytes)


def test_caps_bound_the_items(tmp_path):
    assert forecast_of(job(tmp_path, num_train=10)).train_flops < 0.6 * forecast_of(job(tmp_path)).train_flops


def test_weights_that_torch_hub_lacks_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    config = job(tmp_path, base={"weights": "IMAGENET1K_V1"}, architectures=["resnet18", "resnet34"])
    assert forecast_of(config).to_download == ("resnet18-f37072fd.pth", "resnet34-b627a593.pth")
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "resnet18-f37072fd.pth").touch()
    assert forecast_of(config).to_download == ("resnet34-b627a593.pth",)


def test_what_exceeds_the_disk_is_refused_by_its_largest_key(tmp_path, monkeypatch):
    config = job(tmp_path)
    needed = forecast_of(config)
    check_room(config, needed)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000_000))
    with pytest.raises(ConfigError, match=r"^run_dir: the job writes up to .* found 10\.0.MB free"):
        check_room(config, needed)


def test_all_missing_datasets_are_told_at_once(tmp_path):
    config = job(tmp_path, num_snapshots=3, datasets=["image-woof", "shapes-shape-a", "food-101"])
    with pytest.raises(DataError, match="2 of 3 datasets are missing: image-woof, food-101; `raysnap data ls`"):
        plan_generate(config)
