"""Configuration of a sweep: its space, its metric, its scheduler; and of a finetune, a sweep of what a search found."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from raysnap.config.choices import Preset, TrackerName
from raysnap.config.folders import Folder, NameOrFolder, Storage
from raysnap.config.jobs import RunConfig, TrialsConfig
from raysnap.config.parts import BaseConfig, ResourcesConfig, RetrainDepth, ShapesConfig
from raysnap.config.search_options import MAX_BUDGET_S, SearchOptions
from raysnap.config.space_entry import KINDS_OF_ENTRY, SpaceEntry
from raysnap.config.strict import Section, dotted_keys, refuse_repeated
from raysnap.config.train import TrainConfig
from raysnap.humanize import suggest


class PointConfig(Section):
    """One fine-tune of a sweep with its sampled values in place; its dotted keys are those of a space."""

    architecture: str = Field(min_length=1, description="Name of a torchvision model builder.")
    dataset: NameOrFolder = Field(description="A dataset name or the path of an ImageFolder.")
    image_size: int = Field(
        ge=16, le=4096, description="Edge of the square input image, in pixels, or tokens of a text."
    )
    train: TrainConfig = Field(description="How the snapshot is fine-tuned.")
    retrain: RetrainDepth = Field(description="How many blocks are retrained.")
    base: BaseConfig = Field(description="Where the fine-tune starts from.")


def _read_space(value: Any) -> Any:
    """Turn nested keys, as overrides write them, into dotted ones, and a single entry into a list of one.

    A key without an entry (null) is not in the space, so that an override can take one out.
    """
    if not isinstance(value, dict):
        return value
    known = set(dotted_keys(PointConfig))
    given = dict(_flattened(value, known))
    space = {key: _listed(entries) for key, entries in given.items() if entries is not None}
    for key, entries in space.items():
        conditions = [entry.get("when") or {} for entry in entries if isinstance(entry, dict)]
        for used in (key, *(name for condition in conditions for name in condition)):
            if used not in known:
                raise ValueError(f"{used}: unknown key{suggest(used, known)}")
    return space


def _write_space(space: dict[str, tuple[SpaceEntry, ...]]) -> dict[str, Any]:
    written = {
        key: [entry.model_dump(mode="json", exclude_unset=True) for entry in entries] for key, entries in space.items()
    }
    return {key: entries[0] if len(entries) == 1 else entries for key, entries in written.items()}


Space: TypeAlias = Annotated[
    dict[str, tuple[SpaceEntry, ...]], BeforeValidator(_read_space), PlainSerializer(_write_space)
]
"""Values for each dotted key of a fine-tune: one entry, or a list of which the first whose `when` holds applies."""

Metric = Literal["val_accuracy", "val_top5_accuracy", "val_macro_f1", "val_loss"]


class SweepConfig(TrialsConfig):
    """A sweep: fine-tunes that differ in the values of a space, compared by one validation metric.

    >>> raysnap.SweepConfig(datasets=["shapes-shape-a"], space={"train.lr": {"grid": [0.01, 0.1]}}).metric
    'val_accuracy'
    """

    kind: Literal["sweep"] = "sweep"
    run_dir: Folder = Field(Path("runs/sweep"), description="Folder of this run's records, created if needed.")
    retrain: RetrainDepth = Field(
        RetrainDepth(), description="How many blocks are retrained where the space doesn't say."
    )
    space: Space = Field(
        {},
        description="Values for each dotted key: one entry, or a list of which the first whose `when` holds applies.",
    )
    num_samples: int = Field(
        1, ge=1, le=10_000, description="How often the space is sampled, each time with another seed."
    )
    search_algorithm: Literal["random", "optuna"] = Field(
        "random",
        description="How points are chosen: at random before anything runs, or by Optuna from the results so far.",
    )
    scheduler: Literal["fifo", "asha", "median_stopping", "pbt"] = Field(
        "fifo",
        description="Which trials continue: all; the best of each rung (asha); those above the median; or copies of "
        "the best "
        "(pbt).",
    )
    metric: Metric = Field("val_accuracy", description="Metric by which trials are compared.")
    mode: Literal["max", "min"] = Field(
        description="Whether higher or lower is better; by default min for val_loss, max for the others."
    )
    grace_epochs: int = Field(
        1, ge=1, le=10_000, description="Epochs before asha and median_stopping may stop a trial."
    )
    reduction_factor: float = Field(
        3, gt=1, le=100, description="asha promotes one in this many trials from rung to rung."
    )
    perturb_epochs: int = Field(
        2,
        ge=1,
        le=10_000,
        description="Epochs between the steps in which pbt copies the best trials and perturbs their values.",
    )
    time_budget_s: float | None = Field(
        None, gt=0, description="Seconds after which all trials are stopped; null is no limit."
    )
    keep: Literal["best", "all", "none"] = Field("best", description="Which trials' snapshots are put into the store.")

    @model_validator(mode="before")
    @classmethod
    def _infer_mode(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("mode") is None:
            return value | {"mode": "min" if value.get("metric") == "val_loss" else "max"}
        return value

    @model_validator(mode="after")
    def _check_combinations(self) -> SweepConfig:
        if self.scheduler != "fifo" and self.resources.num_workers:
            raise ValueError(
                f"`scheduler: {self.scheduler}` works only without worker groups: expected resources.num_workers 0, "
                f"found {self.resources.num_workers}"
            )
        if self.scheduler == "pbt":
            self._check_pbt()
        if self.search_algorithm == "optuna":
            self._check_optuna()
        return self

    def _check_pbt(self) -> None:
        if self.search_algorithm != "random":
            raise ValueError(
                "`scheduler: pbt` chooses values itself: expected `search_algorithm: random`, found "
                f"{self.search_algorithm!r}"
            )
        wrong = next((key for key in self.space if key not in PERTURBED), None)
        if wrong or not self.space:
            raise ValueError(
                f"`scheduler: pbt` copies weights between trials: expected a space of only {', '.join(PERTURBED)}, "
                f"found {wrong or 'none'}"
            )
        limit = self.resources.max_concurrent
        if limit is not None and limit < self.num_samples:
            raise ValueError(
                "`scheduler: pbt` compares all trials at each step: expected resources.max_concurrent null or at least "
                f"num_samples {self.num_samples}, found {limit}"
            )
        if self.resources.pack_gpus:
            raise ValueError("`scheduler: pbt` pauses trials: expected `resources.pack_gpus` false, found true")
        if any(len(entries) > 1 or entries[0].when for entries in self.space.values()):
            raise ValueError("`scheduler: pbt` perturbs every value of a trial: expected entries without `when`")

    def _check_optuna(self) -> None:
        wrong = next((key for key in self.space if not key.startswith(("train.", "retrain."))), None)
        if wrong or len(self.architectures) > 1 or len(self.datasets) > 1:
            raise ValueError(
                "`search_algorithm: optuna` needs one base and one dataset: expected one architecture, one "
                f"dataset and a space of train.* and retrain.* keys, found {wrong or 'more than one to choose from'}"
            )


# What may change in a fine-tune that continues with another trial's weights and optimizer.
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
    """Yield the entries of a space by dotted key; a section's keys may be nested under its name."""
    for name, child in value.items():
        key = f"{prefix}{name}"
        is_section = isinstance(child, dict) and any(name.startswith(f"{key}.") for name in known)
        if is_section and not {*KINDS_OF_ENTRY, "when"} & child.keys():
            yield from _flattened(child, known, f"{key}.")
        else:
            yield key, child


def _listed(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


# A finetune

GENTLE = [1e-3, 3e-4, 1e-4, 3e-5]
"""Learning rates from the head down to the stem that retrain whole pretrained nets without harm.

With them, BatchNorm keeps the start's statistics; at higher rates it must learn those of the dataset.
"""

_DEPTHS: dict[str, Any] = {
    "all": {"freeze_fraction": 0.0},
    "half": {"freeze_fraction": 0.5},
    "quarter": {"freeze_fraction": 0.75},
    "head": {"index": 0},
}
_RATES: dict[str, dict[str, list[float]]] = {
    "all": {"gentle": GENTLE, "bold": [1e-3]},
    "half": {"gentle": GENTLE[:3]},
    "quarter": {"bold": [1e-3]},
    "head": {"fast": [3e-3]},
}


def _recipes(*names: str) -> dict[str, Any]:
    """Return a space of recipes named `depth/rates`, in this order."""
    pairs = [tuple(name.split("/")) for name in names]
    depths = list(dict.fromkeys(depth for depth, _ in pairs))
    rates = [
        {"when": {"retrain": depth}, "grid": {rate: _RATES[depth][rate] for other, rate in pairs if other == depth}}
        for depth in depths
    ]
    return {
        "retrain": {"grid": {depth: _DEPTHS[depth] for depth in depths}},
        "train.layer_lrs": rates,
        "train.batch_statistics": {"when": {"train.layer_lrs": "gentle"}, "choice": ["keep"]},
    }


_TRAIN: dict[str, Any] = {"batch_size": 32, "optimizer": "adamw", "weight_decay": 0.01, "schedule": "cosine"}

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "shortlist": 3,
        "min_steps": 75,
        "train": _TRAIN | {"epochs": 5},
        "space": _recipes("quarter/bold", "all/gentle", "all/bold"),
    },
    "good": {
        "shortlist": 5,
        "min_steps": 200,
        "train": _TRAIN | {"epochs": 12},
        "space": _recipes("quarter/bold", "all/gentle", "all/bold", "head/fast"),
    },
    "best": {
        "shortlist": 5,
        "min_steps": 500,
        "train": _TRAIN | {"epochs": 40, "views": 8},
        "space": _recipes("quarter/bold", "all/gentle", "all/bold", "half/gentle", "head/fast"),
    },
}
REF_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
CHOSEN_BY_SEARCH = ("architecture", "dataset", "image_size", "base")


class FinetuneConfig(RunConfig):
    """A finetune: search a store for starts, fine-tune the best ones on a dataset, keep the best model.

    >>> job = raysnap.FinetuneConfig(dataset="shapes-shape-a", preset="quick")
    >>> job.shortlist, job.train.epochs, list(job.space)
    (3, 5, ['retrain', 'train.layer_lrs', 'train.batch_statistics'])
    """

    kind: Literal["finetune"] = "finetune"
    run_dir: Folder = Field(Path("runs/finetune"), description="Folder of this run's records, created if needed.")
    storage_path: Storage = Field(
        None,
        description="Where the run is kept in a bucket as well, such as `s3://bucket/runs/mine`; null is nowhere.",
    )
    data_dir: Folder = Field(Path("data"), description="Folder of the named datasets.")
    dataset: NameOrFolder = Field(description="The dataset: its name or the path of an ImageFolder.")
    preset: Preset = Field(
        "good", description="How much is tried where the keys below don't say: recipes, starts and epochs."
    )
    starts: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="Names or ids of the snapshots to start from; with none, a search chooses them."
    )
    shortlist: int = Field(ge=1, le=1000, description="How many of the best starts are fine-tuned; by `preset`.")
    search: SearchOptions = Field(
        SearchOptions(feature_cache_bytes=2**30), description="How the store is searched; see `raysnap search`."
    )
    train: TrainConfig = Field(description="How each start is fine-tuned where the space doesn't say; by `preset`.")
    min_steps: int = Field(
        ge=0,
        le=1_000_000,
        description="Fewest optimizer steps of each fine-tune: a small dataset gets smaller batches and more epochs. "
        "By `preset`; 0 where `train` has `epochs` or `batch_size`, which are then taken as they are.",
    )
    space: Space = Field(description="Recipes to try with each start, as in a sweep; by `preset`.")
    num_samples: int = Field(1, ge=1, le=1000, description="How often the recipes are sampled.")
    metric: Metric = Field("val_accuracy", description="Metric by which fine-tunes are compared.")
    grace_epochs: int = Field(2, ge=1, le=10_000, description="Epochs before ASHA may stop a fine-tune.")
    reduction_factor: float = Field(
        3, gt=1, le=100, description="ASHA promotes one in this many fine-tunes from rung to rung."
    )
    time_budget_s: float | None = Field(
        None, gt=0, le=MAX_BUDGET_S, description="Seconds that search and training may take together; null is no limit."
    )
    name: str | None = Field(
        None, description="Name of the best model in the store; by default that of the dataset, and `-finetuned`."
    )
    num_train: int | None = Field(None, ge=1, description="Training items used for fine-tuning; null is all.")
    num_val: int | None = Field(None, ge=1, description="Validation items used; null is all.")
    num_test: int | None = Field(None, ge=1, description="Test items used; null is all.")
    shapes: ShapesConfig | None = Field(
        None, description="Size of a built-in dataset; null takes any drawing of it that is there."
    )
    resources: ResourcesConfig = Field(ResourcesConfig(), description="Resources of each fine-tune.")
    prefix_cache_bytes: int = Field(
        10 * 2**30,
        ge=0,
        description="Size limit of the cached outputs of frozen blocks, in bytes; 0 disables the cache.",
    )
    trackers: tuple[TrackerName, ...] = Field((), description="Experiment trackers that log the fine-tunes.")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        preset = PRESETS.get(value.get("preset") or "good")
        if preset is None:
            return value
        train = value.get("train")
        given = {key: child for key, child in value.items() if key not in preset or child is not None}
        if isinstance(train, dict):
            given["train"] = preset["train"] | train
            if {"epochs", "batch_size"} & train.keys():
                given.setdefault("min_steps", 0)
        return preset | given

    @model_validator(mode="after")
    def _check_parts(self) -> FinetuneConfig:
        taken = next((key for key in self.space if key.split(".")[0] in CHOSEN_BY_SEARCH), None)
        if taken is not None:
            raise ValueError(f"`space.{taken}`: expected keys of train and retrain only: the search chooses the starts")
        for key in ("seed", "data_dir", "shapes", "time_budget_s"):
            if (
                key in self.search.model_fields_set
                and getattr(self.search, key) != SearchOptions.model_fields[key].default
            ):
                raise ValueError(f"`search.{key}`: expected it beside `search`, as `{key}`, found it inside")
        refuse_repeated("starts", self.starts)
        if self.name is not None and not REF_NAME.fullmatch(self.name):
            raise ValueError(
                f"`name`: expected a letter or digit, then letters, digits, '.', '_', '-', found {self.name!r}"
            )
        return self
