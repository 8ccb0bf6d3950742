"""Plans: bases bring the preprocessing of their weights, and a job's image size changes the size alone."""

from pathlib import Path

import pytest

from raysnap.config.jobs import GenerateConfig
from raysnap.models.blocks import random_tensors
from raysnap.planning.forecast import forecast
from raysnap.planning.generate import plan_generate, weights_preprocessing
from raysnap.store.preprocessing import Preprocessing
from raysnap.store.store import Store

HALF = (0.5, 0.5, 0.5)


def job(folder: Path, **fields) -> GenerateConfig:
    shapes = {"image_size": 36, "num_train": 16, "num_val": 8, "num_test": 8}
    fields = {"architectures": ["efficientnet_v2_l"], "datasets": ["shapes-shape-a"], "shapes": shapes} | fields
    return GenerateConfig(
        **{"num_snapshots": 1, "image_size": 240, "train": {"epochs": 1}} | fields,
        data_dir=folder / "data",
        store=folder / "store",
        run_dir=folder / "run",
    )


def test_weights_of_torchvision_bring_their_preprocessing(tmp_path):
    config = job(tmp_path, base={"weights": "IMAGENET1K_V1"})
    plan = plan_generate(config)
    own = Preprocessing(resize_size=480, image_size=480, mean=HALF, std=HALF, interpolation="bicubic")
    used = own.model_copy(update={"resize_size": 240, "image_size": 240})
    assert plan.inputs == {"efficientnet_v2_l": own}
    assert {plan.preprocessing_of(trial) for trial in [*plan.bases, *plan.trials]} == {used}
    (line,) = forecast(config, plan).inputs
    assert line.startswith("IMAGENET1K_V1 of efficientnet_v2_l: its images are shorter side 480\u00a0px (bicubic)")
    assert line.endswith("image_size makes the crop 240 px, of 240 px")


@pytest.mark.parametrize(
    ("architecture", "weights"), [("resnet18", "random"), ("resnet18", "IMAGENET1K_V1"), ("vit_b_32", "DEFAULT")]
)
def test_the_usual_way_stays_as_it_was(tmp_path, architecture, weights):
    config = job(tmp_path, architectures=[architecture], image_size=224, base={"weights": weights})
    plan = plan_generate(config)
    assert plan.inputs == {} and forecast(config, plan).inputs == ()
    assert plan.preprocessing_of(plan.trials[0]) == Preprocessing.cropping(224)


def test_a_snapshot_brings_the_preprocessing_of_its_manifest(tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    squashed = Preprocessing(resize_size=64, image_size=64, resize_mode="squash")
    ways = {"usual": Preprocessing.cropping(48), "squashed": squashed}
    for number, (name, way) in enumerate(ways.items()):
        blocks = random_tensors("resnet18", 2, number)
        store.put_snapshot(architecture="resnet18", blocks=blocks, num_classes=2, name=name, preprocessing=way)
    assert weights_preprocessing("usual", "resnet18", store) is None
    assert weights_preprocessing("squashed", "resnet18", store) == squashed
    plan = plan_generate(job(tmp_path, architectures=["resnet18"], image_size=32, base={"weights": "squashed"}))
    assert plan.preprocessing_of(plan.trials[0]) == squashed.sized(32)
