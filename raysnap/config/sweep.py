"""What a sweep is configured with: its space, its metric, its scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from raysnap.config.jobs import FinetuneConfig
from raysnap.config.parts import BaseConfig, RetrainDepth
from raysnap.config.space_entry import KINDS_OF_ENTRY, SpaceEntry
from raysnap.config.strict import Section, dotted_keys
from raysnap.config.train import TrainConfig
from raysnap.humanize import suggest


class PointConfig(Section):
    """One fine-tune of a sweep as it is told, its sampled values in place: what the keys of a space name."""

    architecture: str = Field(min_length=1, description="A torchvision builder name.")
    dataset: str = Field(min_length=1, description="A dataset name or the path of an ImageFolder.")
    image_size: int = Field(ge=16, le=4096, description="Edge of the square that the model sees, in pixels.")
    train: TrainConfig = Field(description="How it is fine-tuned.")
    retrain: RetrainDepth = Field(description="How many blocks are retrained.")
    base: BaseConfig = Field(description="Where it starts from.")


Metric = Literal["val_accuracy", "val_top5_accuracy", "val_macro_f1", "val_loss"]


class SweepConfig(FinetuneConfig):
    """A sweep: fine-tunes that differ in what a space says, compared by one metric on val."""

    kind: Literal["sweep"] = "sweep"
    run_dir: Path = Field(Path("runs/sweep"), description="Folder of this run's records; made by the run.")
    retrain: RetrainDepth = Field(
        RetrainDepth(), description="How many blocks are retrained where the space is silent."
    )
    space: dict[str, tuple[SpaceEntry, ...]] = Field(
        {}, description="What is tried for each dotted key: an entry, or a list of which the first whose `when` holds."
    )
    num_samples: int = Field(
        1, ge=1, le=10_000, description="How often the space is sampled, each time with a new seed."
    )
    search_algorithm: Literal["random", "optuna"] = Field(
        "random", description="Who chooses: the seed, before anything runs, or Optuna, from the results so far."
    )
    scheduler: Literal["fifo", "asha", "median_stopping", "pbt"] = Field(
        "fifo", description="Which trials go on: all; by successive halving; those above the median; or bred on."
    )
    metric: Metric = Field("val_accuracy", description="What trials are compared by.")
    mode: Literal["max", "min"] = Field(description="Which is better; what the metric calls for where it is not given.")
    grace_epochs: int = Field(1, ge=1, le=10_000, description="Epochs that asha and median_stopping leave every trial.")
    reduction_factor: float = Field(3, gt=1, le=100, description="Of so many trials asha lets one go on, rung by rung.")
    perturb_epochs: int = Field(
        2, ge=1, le=10_000, description="Epochs after which pbt copies and perturbs, again and again."
    )
    time_budget_s: float | None = Field(None, gt=0, description="Seconds after which trials end; null is no limit.")
    keep: Literal["best", "all", "none"] = Field("best", description="Whose snapshots the store gets.")

    @model_validator(mode="before")
    @classmethod
    def _metric_has_a_mode(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("mode") is None:
            return value | {"mode": "min" if value.get("metric") == "val_loss" else "max"}
        return value

    @field_validator("space", mode="before")
    @classmethod
    def _keys_are_dotted_and_known(cls, value: Any) -> Any:
        """Nested keys, as overrides give them, stand for dotted ones; an entry alone is a list of one."""
        if not isinstance(value, dict):
            return value
        known = set(dotted_keys(PointConfig))
        space = {key: _listed(entries) for key, entries in _flattened(value, known)}
        for key, entries in space.items():
            conditions = [one.get("when") or {} for one in entries if isinstance(one, dict)]
            for used in (key, *(name for condition in conditions for name in condition)):
                if used not in known:
                    raise ValueError(f"{used}: unknown key{suggest(used, known)}")
        return space

    @field_serializer("space")
    def _written_as_it_is_read(self, space: dict[str, tuple[SpaceEntry, ...]]) -> dict[str, Any]:
        written = {
            key: [entry.model_dump(mode="json", exclude_unset=True) for entry in one] for key, one in space.items()
        }
        return {key: entries[0] if len(entries) == 1 else entries for key, entries in written.items()}

    @model_validator(mode="after")
    def _parts_work_together(self) -> SweepConfig:
        if self.scheduler != "fifo" and self.resources.num_workers:
            raise ValueError(
                f"`scheduler: {self.scheduler}` works in the trainer's local mode alone: expected "
                f"resources.num_workers 0, found {self.resources.num_workers}"
            )
        if self.scheduler == "pbt":
            self._check_pbt()
        if self.search_algorithm == "optuna":
            self._check_optuna()
        return self

    def _check_pbt(self) -> None:
        if self.search_algorithm != "random":
            raise ValueError("`scheduler: pbt` chooses values itself: expected `search_algorithm: random`")
        wrong = next((key for key in self.space if key not in PERTURBED), None)
        if wrong or not self.space:
            raise ValueError(
                f"`scheduler: pbt` hands weights from trial to trial: expected a space of {', '.join(PERTURBED)}, "
                f"found {wrong or 'none'}"
            )
        if any(len(entries) > 1 or entries[0].when for entries in self.space.values()):
            raise ValueError("`scheduler: pbt` perturbs every value of a trial: expected entries without `when`")

    def _check_optuna(self) -> None:
        wrong = next((key for key in self.space if not key.startswith(("train.", "retrain."))), None)
        if wrong or len(self.architectures) > 1 or len(self.datasets) > 1:
            raise ValueError(
                "`search_algorithm: optuna` chooses once bases and data are there: expected one architecture, one "
                f"dataset and a space of train.* and retrain.* keys, found {wrong or 'more than one to choose from'}"
            )


PERTURBED = (
    "train.lr",
    "train.momentum",
    "train.weight_decay",
    "train.layer_lr_decay",
    "train.label_smoothing",
    "train.mixup_alpha",
    "train.cutmix_alpha",
    "train.clip_norm",
)


def _flattened(value: dict[str, Any], known: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of a space, in which a section's keys may stand below its name."""
    for name, child in value.items():
        key = f"{prefix}{name}"
        is_section = isinstance(child, dict) and any(one.startswith(f"{key}.") for one in known)
        if is_section and not {*KINDS_OF_ENTRY, "when"} & child.keys():
            yield from _flattened(child, known, f"{key}.")
        else:
            yield key, child


def _listed(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]
