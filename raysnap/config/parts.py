"""Parts that several kinds of job are configured with: bases, retrain indices, drawn datasets, resources."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysnap.config.strict import Section
from raysnap.config.train import TrainConfig


class RetrainConfig(Section):
    """How many blocks below the head each trial retrains."""

    distribution: Literal[
        "top_layers", "twenty_five_percent", "fifty_percent", "last_one_layer", "uniform", "fixed"
    ] = Field("twenty_five_percent", description="What the retrain index is drawn from.")
    values: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="For `fixed`: the retrain indices; each stands for a round over all datasets."
    )
    freeze_fraction: float | None = Field(
        None, ge=0, le=1, description="For `fixed`: the share f of the blocks that stays frozen, r = round((1 - f) L)."
    )

    @model_validator(mode="after")
    def _fixed_has_one_source(self) -> RetrainConfig:
        given = [name for name in ("values", "freeze_fraction") if getattr(self, name) is not None]
        if self.distribution == "fixed" and len(given) != 1:
            raise ValueError("`fixed` needs exactly one of `values` and `freeze_fraction`")
        if self.distribution != "fixed" and given:
            raise ValueError(f"`{given[0]}` belongs to `distribution: fixed`")
        if self.values is not None and not self.values:
            raise ValueError("`values` is empty")
        return self


class RetrainDepth(Section):
    """How many blocks below the head are retrained, told outright; nothing given is all of them and the stem."""

    index: int | None = Field(None, ge=0, le=10_000, description="The last so many blocks below the head.")
    freeze_fraction: float | None = Field(
        None, ge=0, le=1, description="The share f of the blocks that stays frozen, index = round((1 - f) L)."
    )

    @model_validator(mode="after")
    def _has_one_source(self) -> RetrainDepth:
        if self.index is not None and self.freeze_fraction is not None:
            raise ValueError("expected one of `index` and `freeze_fraction`, found both")
        return self


class BasePretraining(Section):
    """A dataset that each base is trained on, all blocks, before anything is fine-tuned from it."""

    dataset: str = Field(description="A dataset name or the path of an ImageFolder.")
    train: TrainConfig = Field(TrainConfig(), description="How the base is trained.")


class BaseWeights(Section):
    """Where every architecture's base snapshot comes from."""

    weights: str = Field(
        "random", min_length=1, description="A torchvision weights name, `random`, a snapshot or ref, or a file."
    )


class BaseConfig(BaseWeights):
    """Where every architecture's base snapshot comes from, and what it is trained on before anything else."""

    pretraining: BasePretraining | None = Field(None, description="Train the base on a dataset first.")


class ShapesConfig(Section):
    """How large the built-in `shapes` datasets are drawn."""

    image_size: int = Field(64, ge=16, le=1024, description="Edge of the drawn JPEGs, in pixels.")
    num_train: int = Field(400, ge=8, le=1_000_000, description="Training images per dataset.")
    num_val: int = Field(100, ge=0, le=1_000_000, description="Validation images per dataset.")
    num_test: int = Field(100, ge=0, le=1_000_000, description="Test images per dataset.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the drawing.")


class ResourcesConfig(Section):
    """What each trial or search gets, and how many run at once."""

    num_workers: int = Field(
        0,
        ge=0,
        le=1024,
        description="Train workers per trial; 0 is the trainer's local mode in the trial's own actor, 1 and more are a "
        "worker group.",
    )
    max_failures: int = Field(
        1,
        ge=0,
        le=1000,
        description="How often a trial whose process died is begun again, from its newest checkpoint.",
    )
    gpus: float | None = Field(None, ge=0, le=64, description="GPUs per trial; null is one where there is any, else 0.")
    cpus: float = Field(1, gt=0, le=1024, description="CPUs per trial.")
    max_concurrent: int | None = Field(None, ge=1, description="Trials at once; null is as many as fit.")
