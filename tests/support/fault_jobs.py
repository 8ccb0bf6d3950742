"""Jobs on tiny built-in data whose datasets bring faults: asking for one's folder plants it where it is asked for."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import ray
import torch
from ray import cloudpickle
from torch.nn import functional

from raysnap.config.jobs import GenerateConfig
from raysnap.config.parts import ShapesConfig
from raysnap.config.train import TrainConfig
from raysnap.datasets.dataset import open_dataset
from raysnap.store.preprocessing import Preprocessing
from raysnap.store.store import Store
from raysnap.training.trial import Trial
from raysnap.training.trial_loop import TrainJob

SHAPES = ShapesConfig(image_size=36, num_train=32, num_val=8, num_test=8)
PREPROCESSING = Preprocessing.cropping(32)
DATASET = "shapes-shape-a"
TRAIN = TrainConfig(epochs=6, batch_size=16, checkpoint_every=1, deterministic=True)
NUM_STEPS = TRAIN.epochs * SHAPES.num_train // TRAIN.batch_size
HALF = TRAIN.batch_size // 2


class FaultyDirs(dict):
    """The folder of one dataset, under the names of faults.

    `killed` dies once, at step `kill_step`; `deadly` dies whenever it starts; `tight` has memory for half a batch,
    `full` for none; `gone` is a folder that is not there. Where it is asked for, `NAME@NODE` is left in `marks_dir`.
    """

    def __init__(self, folder: Path, marks_dir: Path, kill_step: int):
        super().__init__()
        self.folder = folder
        self.marks_dir = marks_dir
        self.kill_step = kill_step

    def __getitem__(self, name: str) -> Path:
        if ray.is_initialized():
            (self.marks_dir / f"{name}@{ray.get_runtime_context().get_node_id()}").touch()
        functional.cross_entropy = getattr(functional.cross_entropy, "unhurt", functional.cross_entropy)
        if name == "killed" and not (self.marks_dir / name).exists():
            torch.optim.Adam.step = _dying(torch.optim.Adam.step, self.kill_step, self.marks_dir / name)
        if name == "deadly":
            _die()
        if name in ("tight", "full"):
            functional.cross_entropy = _short_of_memory(HALF if name == "tight" else 0)
        return self.folder.with_name("gone") if name == "gone" else self.folder

    def __reduce__(self) -> Any:
        return FaultyDirs, (self.folder, self.marks_dir, self.kill_step)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _dying(step: Any, kill_step: int, mark_path: Path) -> Any:
    num_steps = 0

    def count_and_die(*args: Any, **options: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        if num_steps == kill_step:
            mark_path.touch()
            _die()
        return step(*args, **options)

    return count_and_die


def _short_of_memory(num_items: int) -> Any:
    unhurt = functional.cross_entropy

    def cross_entropy(logits: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if len(logits) > num_items:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return unhurt(logits, *args, **options)

    cross_entropy.unhurt = unhurt
    return cross_entropy


def trial(name: str, dataset: str | None = None, **train: Any) -> Trial:
    """Return a trial of that name on the dataset, or the fault, of that name."""
    return Trial(
        id=name,
        role="finetune",
        architecture="resnet18",
        dataset=dataset or name,
        retrain_index=1,
        seed=7,
        train=TRAIN.model_copy(update=train),
    )


def train_job(directory: Path, kill_step: int = 0) -> TrainJob:
    """Return the job that such trials belong to; its base is the store's, under the name `base`."""
    dataset = open_dataset(DATASET, directory / "data", SHAPES)
    return TrainJob(
        store_dir=directory / "store",
        dataset_dirs=FaultyDirs(dataset.root.resolve(), directory, kill_step),
        bases={"resnet18": Store.open(directory / "store").resolve("base")},
        preprocessing=PREPROCESSING,
        seed=0,
        num_train=None,
        num_val=None,
        num_test=None,
    )


def generate_config(directory: Path, **changes: Any) -> GenerateConfig:
    """Return a job of two fine-tunes of six short epochs, as `raysnap generate` takes it."""
    settings = {
        "run_dir": directory / "run",
        "store": directory / "store",
        "data_dir": directory / "data",
        "datasets": [DATASET],
        "num_snapshots": 2,
        "image_size": 32,
        "shapes": SHAPES.model_dump(),
        "train": TRAIN.model_dump(),
        "retrain": {"distribution": "fixed", "values": [1, 2]},
        "resources": {"max_concurrent": 1},
    }
    return GenerateConfig.model_validate(settings | changes)


# Ray's workers do not find this module; what they need of it travels with the job.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
