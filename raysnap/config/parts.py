"""Parts that several kinds of job share: bases, retrain indices, drawn datasets, resources."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysnap.config.folders import NameOrFolder
from raysnap.config.strict import Section
from raysnap.config.train import TrainConfig


class RetrainConfig(Section):
    """How many blocks below the head each trial retrains."""

    distribution: Literal[
        "top_layers", "twenty_five_percent", "fifty_percent", "last_one_layer", "uniform", "fixed"
    ] = Field("twenty_five_percent", description="Distribution from which retrain indices are drawn.")
    values: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="For `fixed`: the retrain indices; each is used for one round over all datasets."
    )
    freeze_fraction: float | None = Field(
        None,
        ge=0,
        le=1,
        description="For `fixed`: the share f of the L blocks that stays frozen; the retrain index is round("
        "(1 - f) L).",
    )
    stem: bool = Field(
        False,
        description="Whether fine-tunes that retrain all L blocks retrain the stem as well: then nothing is frozen.",
    )

    @model_validator(mode="after")
    def _check_fixed(self) -> RetrainConfig:
        given = [name for name in ("values", "freeze_fraction") if getattr(self, name) is not None]
        if self.distribution == "fixed" and len(given) != 1:
            raise ValueError(
                "`distribution: fixed`: expected exactly one of `values` and `freeze_fraction`, found "
                f"{'both' if given else 'neither'}"
            )
        if self.distribution != "fixed" and given:
            raise ValueError(f"`{given[0]}` works only with `distribution: fixed`, found `{self.distribution}`")
        if self.values is not None and not self.values:
            raise ValueError("`values` is empty: expected at least one retrain index")
        return self


class RetrainDepth(Section):
    """Number of blocks retrained below the head; unset means all blocks, including the stem."""

    index: int | None = Field(
        None, ge=0, le=10_000, description="Number of blocks retrained, counted down from the head."
    )
    freeze_fraction: float | None = Field(
        None, ge=0, le=1, description="The share f of the L blocks that stays frozen; the index is round((1 - f) L)."
    )

    @model_validator(mode="after")
    def _check_source(self) -> RetrainDepth:
        if self.index is not None and self.freeze_fraction is not None:
            raise ValueError("expected one of `index` and `freeze_fraction`, found both")
        return self


class BasePretraining(Section):
    """A dataset on which all blocks of each base are trained before anything is fine-tuned from it."""

    dataset: NameOrFolder = Field(description="A dataset name or the path of an ImageFolder.")
    train: TrainConfig = Field(TrainConfig(), description="How the base is trained.")


class BaseWeights(Section):
    """Where every architecture's base snapshot comes from."""

    weights: NameOrFolder = Field(
        "random", description="A torchvision weights name, `random`, a snapshot's id or name, or a file."
    )
    tokenizer: NameOrFolder | None = Field(
        None,
        description="A tokenizer.json, or `words` for the built-in one, for weights that see texts and come without.",
    )


class BaseConfig(BaseWeights):
    """Where every architecture's base snapshot comes from, and what it is trained on first."""

    pretraining: BasePretraining | None = Field(
        None, description="Train each base on a dataset first; null trains none."
    )


class ShapesConfig(Section):
    """Sizes of the built-in `shapes` datasets, which are drawn."""

    image_size: int = Field(64, ge=16, le=1024, description="Edge of the drawn JPEGs, in pixels.")
    num_train: int = Field(400, ge=8, le=1_000_000, description="Training images per dataset.")
    num_val: int = Field(100, ge=0, le=1_000_000, description="Validation images per dataset.")
    num_test: int = Field(100, ge=0, le=1_000_000, description="Test images per dataset.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the drawing.")


class ArchitectureResources(Section):
    """Resources of the trials of some architectures; what is left out is as for all others."""

    gpus: float | None = Field(None, ge=0, le=64, description="GPUs per trial.")
    cpus: float | None = Field(None, gt=0, le=1024, description="CPUs per trial.")
    memory_bytes: int | None = Field(None, ge=1, description="Main memory per trial, in bytes.")


class ResourcesConfig(Section):
    """Resources of each trial or search, and how many run at once."""

    num_workers: int = Field(
        0,
        ge=0,
        le=1024,
        description="Ray Train workers per trial; with 0 the trial trains in its own actor (local mode), without a "
        "worker group.",
    )
    max_failures: int = Field(
        1,
        ge=0,
        le=1000,
        description="How often a trial whose process died is restarted from its latest checkpoint.",
    )
    gpus: float | None = Field(None, ge=0, le=64, description="GPUs per trial; null is 1 where there is a GPU, else 0.")
    cpus: float = Field(1, gt=0, le=1024, description="CPUs per trial.")
    memory_bytes: int | None = Field(
        None, ge=1, description="Main memory that Ray reserves per trial, in bytes; null reserves none."
    )
    max_concurrent: int | None = Field(
        None, ge=1, description="Maximum number of trials at once; null is as many as fit."
    )
    pack_gpus: bool = Field(
        False,
        description="Whether trials share GPUs by the memory that they need: the first trial of each kind measures it "
        "on a GPU of its own.",
    )
    by_architecture: dict[str, ArchitectureResources] = Field(
        {},
        description="Other resources for the architectures that match a pattern such as `vit_*`; the first pattern "
        "that matches counts.",
    )

    @model_validator(mode="after")
    def _check_packing(self) -> ResourcesConfig:
        if self.pack_gpus and self.num_workers:
            raise ValueError(
                f"`pack_gpus` works only without worker groups: expected num_workers 0, found {self.num_workers}"
            )
        by_hand = [self.gpus, *(part.gpus for part in self.by_architecture.values())]
        if self.pack_gpus and any(gpus is not None for gpus in by_hand):
            raise ValueError(
                "`pack_gpus` measures what share of a GPU a trial takes, and `gpus` sets it: drop one of them"
            )
        return self

    def of(self, architecture: str) -> ResourcesConfig:
        """Return the resources of an architecture's trials."""
        for pattern, own in self.by_architecture.items():
            if fnmatchcase(architecture, pattern):
                given = {name: value for name, value in own if value is not None}
                return self.model_copy(update=given)
        return self
