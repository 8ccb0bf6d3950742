"""Jobs that make snapshots: generate, synthesize, and what they share with others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysnap.config.choices import TrackerName
from raysnap.config.parts import BaseConfig, BaseWeights, ResourcesConfig, RetrainConfig, ShapesConfig
from raysnap.config.strict import Section, refuse_repeated
from raysnap.config.train import TrainConfig


class RunConfig(Section):
    """What every job is told: its seed and its places."""

    seed: int = Field(0, ge=0, lt=2**32, description="The one seed that everything random derives from.")
    run_dir: Path = Field(description="Folder of this run's records; made by the run.")
    store: Path = Field(Path("store"), description="Folder of the model store.")

    @model_validator(mode="after")
    def _nothing_listed_twice(self) -> RunConfig:
        for name in ("datasets", "architectures", "trackers"):
            refuse_repeated(name, getattr(self, name, ()))
        return self


class SyntheticRecipe(Section):
    """What synthetic snapshots are made of: a base with freshly initialised top blocks, untrained."""

    seed: int = Field(0, ge=0, lt=2**32, description="The one seed that everything random derives from.")
    architectures: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        ("resnet18",), min_length=1, description="torchvision builder names."
    )
    num_snapshots: int = Field(
        36, ge=1, le=1_000_000, description="Snapshots in all, each architecture's base among them."
    )
    num_classes: int = Field(1000, ge=2, le=1_000_000, description="Classes of the heads.")
    image_size: int = Field(224, ge=16, le=4096, description="Edge of the square that models see, in pixels.")
    parent: Literal["random", "base"] = Field(
        "random", description="What a snapshot derives from: any made before it, or always the base."
    )
    retrain: RetrainConfig = Field(RetrainConfig(), description="How many blocks each snapshot has of its own.")
    base: BaseWeights = Field(BaseWeights(), description="Where the bases come from.")

    @model_validator(mode="after")
    def _no_architecture_twice(self) -> SyntheticRecipe:
        refuse_repeated("architectures", self.architectures)
        return self


class SynthesizeConfig(SyntheticRecipe, RunConfig):
    """Synthetic snapshots in a store."""

    kind: Literal["synthesize"] = "synthesize"
    run_dir: Path = Field(Path("runs/synthesize"), description="Folder of this run's records; made by the run.")


class JobConfig(RunConfig):
    """What a job on datasets is told besides: its data and its resources."""

    data_dir: Path = Field(Path("data"), description="Folder of the named datasets.")
    datasets: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        min_length=1, description="Dataset names or paths of ImageFolders."
    )
    image_size: int = Field(224, ge=16, le=4096, description="Edge of the square that models see, in pixels.")
    num_train: int | None = Field(None, ge=1, description="Training items used per dataset; null is all.")
    num_test: int | None = Field(None, ge=1, description="Test items used per dataset; null is all.")
    shapes: ShapesConfig = Field(ShapesConfig(), description="Size of the built-in datasets.")
    resources: ResourcesConfig = Field(ResourcesConfig(), description="What each trial or search gets.")


class FinetuneConfig(JobConfig):
    """What a job that fine-tunes is told besides: what is trained, how, and from which start."""

    architectures: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        ("resnet18",), min_length=1, description="torchvision builder names."
    )
    num_val: int | None = Field(None, ge=1, description="Validation items used per dataset; null is all.")
    train: TrainConfig = Field(TrainConfig(), description="How each snapshot is fine-tuned.")
    base: BaseConfig = Field(BaseConfig(), description="Where fine-tunes start from.")
    prefix_cache_bytes: int = Field(
        10 * 2**30, ge=0, description="Room for the cached outputs of frozen blocks, per machine; 0 is no cache."
    )
    trackers: tuple[TrackerName, ...] = Field(
        (), description="Who is told of the trials besides TensorBoard's event files: mlflow, wandb."
    )


class GenerateConfig(FinetuneConfig):
    """A population of fine-tuned snapshots."""

    kind: Literal["generate"] = "generate"
    run_dir: Path = Field(Path("runs/generate"), description="Folder of this run's records; made by the run.")
    num_snapshots: int = Field(8, ge=1, le=1_000_000, description="Fine-tuned snapshots, the bases not counted.")
    retrain: RetrainConfig = Field(RetrainConfig(), description="How many blocks each trial retrains.")
