"""Configuration of the jobs that make snapshots, generate and synthesize, and what all jobs share."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysnap.config.choices import TrackerName
from raysnap.config.folders import Folder, NameOrFolder, Storage, StoreFolder
from raysnap.config.parts import BaseConfig, BaseWeights, ResourcesConfig, RetrainConfig, ShapesConfig
from raysnap.config.strict import Section, refuse_repeated
from raysnap.config.train import TrainConfig
from raysnap.humanize import suggest


class RunConfig(Section):
    """What every job has: a seed, a run folder and a store."""

    seed: int = Field(0, ge=0, lt=2**32, description="The seed from which everything random derives.")
    run_dir: Folder = Field(description="Folder of this run's records, created if needed.")
    store: StoreFolder = Field(Path("store"), description="The model store: a folder, or `s3://bucket/prefix`.")

    @model_validator(mode="after")
    def _refuse_repeats(self) -> RunConfig:
        for name in ("datasets", "architectures", "trackers"):
            refuse_repeated(name, getattr(self, name, ()))
        return self


class SyntheticRecipe(Section):
    """How synthetic snapshots are made: a base with freshly initialised top blocks, untrained."""

    seed: int = Field(0, ge=0, lt=2**32, description="The seed from which everything random derives.")
    architectures: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        ("resnet18",), min_length=1, description="torchvision builder names."
    )
    num_snapshots: int = Field(
        36, ge=1, le=1_000_000, description="Number of snapshots, including each architecture's base."
    )
    num_classes: int = Field(1000, ge=2, le=1_000_000, description="Number of classes of the heads.")
    image_size: int = Field(
        224, ge=16, le=4096, description="Edge of the square input image, in pixels, or tokens of a text."
    )
    parent: Literal["random", "base"] = Field(
        "random", description="What a snapshot derives from: a random earlier snapshot, or always the base."
    )
    retrain: RetrainConfig = Field(
        RetrainConfig(), description="How many blocks below the head are new in each snapshot."
    )
    base: BaseWeights = Field(BaseWeights(), description="Where the bases come from.")

    @model_validator(mode="after")
    def _refuse_repeated_architectures(self) -> SyntheticRecipe:
        refuse_repeated("architectures", self.architectures)
        if self.retrain.stem:
            raise ValueError("`retrain.stem` works only in jobs that fine-tune: synthetic snapshots share their stems")
        return self


class SynthesizeConfig(SyntheticRecipe, RunConfig):
    """A job that puts synthetic snapshots into a store.

    >>> raysnap.SynthesizeConfig(num_snapshots=12, parent="base").image_size
    224
    """

    kind: Literal["synthesize"] = "synthesize"
    run_dir: Folder = Field(Path("runs/synthesize"), description="Folder of this run's records, created if needed.")


class JobConfig(RunConfig):
    """What every job on datasets has: its data and its resources."""

    data_dir: Folder = Field(Path("data"), description="Folder of the named datasets.")
    datasets: tuple[NameOrFolder, ...] = Field(min_length=1, description="Dataset names or paths of ImageFolders.")
    image_size: int = Field(
        224, ge=16, le=4096, description="Edge of the square input image, in pixels, or tokens of a text."
    )
    num_train: int | None = Field(None, ge=1, description="Training items used per dataset; null is all.")
    num_test: int | None = Field(None, ge=1, description="Test items used per dataset; null is all.")
    shapes: ShapesConfig = Field(ShapesConfig(), description="Size of the built-in datasets.")
    resources: ResourcesConfig = Field(ResourcesConfig(), description="Resources of each trial or search.")


class TrialsConfig(JobConfig):
    """What every job that fine-tunes has: what is trained, how, and from which start."""

    architectures: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        ("resnet18",), min_length=1, description="torchvision builder names."
    )
    num_val: int | None = Field(None, ge=1, description="Validation items used per dataset; null is all.")
    train: TrainConfig = Field(TrainConfig(), description="How each snapshot is fine-tuned.")
    base: BaseConfig = Field(BaseConfig(), description="Where fine-tunes start from.")
    storage_path: Storage = Field(
        None,
        description="Where the run is kept in a bucket as well, such as `s3://bucket/runs/mine`; null is nowhere.",
    )
    prefix_cache_bytes: int = Field(
        10 * 2**30,
        ge=0,
        description="Size limit of the cached outputs of frozen blocks, in bytes per machine; 0 disables the cache.",
    )
    trackers: tuple[TrackerName, ...] = Field(
        (),
        description="Experiment trackers that log the trials, in addition to TensorBoard's event files: mlflow, wandb.",
    )

    @model_validator(mode="after")
    def _check_patterns(self) -> TrialsConfig:
        if self.train.time_limit_s is not None and self.resources.num_workers:
            raise ValueError(
                "`train.time_limit_s` works only without worker groups, whose clocks differ: expected "
                f"resources.num_workers 0, found {self.resources.num_workers}"
            )
        for pattern in self.resources.by_architecture:
            if not any(fnmatchcase(architecture, pattern) for architecture in self.architectures):
                raise ValueError(
                    f"`resources.by_architecture.{pattern}`: matches none of the architectures "
                    f"{', '.join(self.architectures)}{suggest(pattern, self.architectures)}"
                )
        return self


class GenerateConfig(TrialsConfig):
    """A job that makes a population of fine-tuned snapshots.

    >>> raysnap.GenerateConfig(datasets=["shapes-shape-a"], num_snapshots=3).architectures
    ('resnet18',)
    """

    kind: Literal["generate"] = "generate"
    run_dir: Folder = Field(Path("runs/generate"), description="Folder of this run's records, created if needed.")
    num_snapshots: int = Field(
        8, ge=1, le=1_000_000, description="Number of fine-tuned snapshots, not counting the bases."
    )
    retrain: RetrainConfig = Field(RetrainConfig(), description="How many blocks each trial retrains.")
