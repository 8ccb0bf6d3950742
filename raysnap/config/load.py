"""What a job may be told: frozen pydantic models, read from YAML files and `key=value` overrides.

A YAML file maps one to one onto a model; a key the model doesn't know is refused with the nearest one it does.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_serializer, field_validator, model_validator

from raysnap.config.bench_grid import BenchGrid
from raysnap.config.choices import TrackerName
from raysnap.config.space_entry import KINDS_OF_ENTRY, SpaceEntry
from raysnap.config.strict import Config, Section, did_you_mean, refuse_repeated
from raysnap.config.train import TrainConfig
from raysnap.config.yaml_files import apply_overrides, read_yaml, to_yaml
from raysnap.errors import ConfigError


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


class BenchConfig(BenchGrid, JobConfig):
    """Timed searches: grids of methods, stores, datasets and sizes, each cell some times over."""

    kind: Literal["bench"] = "bench"
    run_dir: Path = Field(Path("runs/bench"), description="Folder of this run's records; made by the run.")
    groups: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], BenchGrid] = Field(
        {}, description="Grids by name, each with the keys above where it differs; none is one grid of those."
    )
    synthetic_sets: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], SyntheticRecipe] = Field(
        {}, description="Stores of synthetic snapshots by name, made when first needed; `store` may name them."
    )
    synthetic_dir: Path = Field(
        Path("synthetic"), description="Folder of the stores of `synthetic_sets`, which later runs reuse."
    )

    @model_validator(mode="before")
    @classmethod
    def _groups_take_over(cls, document: Any) -> Any:
        """A group has every key of the grid that it does not set itself."""
        groups = document.get("groups") if isinstance(document, dict) else None
        if not isinstance(groups, dict):
            return document
        shared = {key: document[key] for key in BenchGrid.model_fields if key in document and key != "title"}
        merged = {name: shared | group if isinstance(group, dict) else group for name, group in groups.items()}
        return document | {"groups": merged}

    @model_validator(mode="after")
    def _has_datasets(self) -> BenchConfig:
        for name, grid in self.grids.items():
            if not grid.datasets:
                raise ValueError(f"{f'groups.{name}.' if name else ''}datasets: missing, and it has no default")
        return self

    @property
    def grids(self) -> dict[str | None, BenchGrid]:
        """The groups by name; without any, the one grid of the keys outside, under None."""
        return dict(self.groups) or {None: self}

    def only(self, names: Collection[str]) -> BenchConfig:
        """The same benchmark with these of its groups alone; without names, as it is.

        Raises:
            ConfigError: there is no such group.
        """
        for name in names:
            if name not in self.groups:
                known = ", ".join(self.groups) or "none"
                raise ConfigError(
                    f"group {name!r}: expected one of {known}, found no such group{did_you_mean(name, self.groups)}"
                )
        kept = {name: grid for name, grid in self.groups.items() if name in names}
        return self.model_copy(update={"groups": kept}) if names else self


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
        known = set(_dotted_keys(PointConfig))
        space = {key: _listed(entries) for key, entries in _flattened(value, known)}
        for key, entries in space.items():
            conditions = [one.get("when") or {} for one in entries if isinstance(one, dict)]
            for used in (key, *(name for condition in conditions for name in condition)):
                if used not in known:
                    raise ValueError(f"{used}: unknown key{did_you_mean(used, known)}")
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
"""What may change in a fine-tune that goes on with another's weights and optimizer."""


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


class QuickstartConfig(Section):
    """The whole job on the built-in data: generate a population, then time the searches."""

    kind: Literal["quickstart"] = "quickstart"
    generate: GenerateConfig
    bench: BenchConfig

    def inside(self, directory: Path) -> QuickstartConfig:
        """The same job with every folder inside `directory`; both halves share one store and its data.

        Raises:
            ConfigError: the configuration names a folder itself.
        """
        for half in ("generate", "bench"):
            for key in ("store", "data_dir", "run_dir"):
                if key in getattr(self, half).model_fields_set:
                    raise ConfigError(
                        f"{half}.{key}: a quickstart keeps everything in one folder; choose it with --dir"
                    )
        if self.bench.groups:
            raise ConfigError("bench.groups: a quickstart times one grid; run the groups with `raysnap bench`")
        store, data_dir, run_dir = directory / "store", directory / "data", directory / "run"
        return self.model_copy(
            update={
                "generate": self.generate.model_copy(update={"store": store, "data_dir": data_dir, "run_dir": run_dir}),
                "bench": self.bench.model_copy(
                    update={"store": (store,), "data_dir": data_dir, "run_dir": run_dir / "bench"}
                ),
            }
        )


KINDS: dict[str, type[Config]] = {
    "generate": GenerateConfig,
    "sweep": SweepConfig,
    "synthesize": SynthesizeConfig,
    "bench": BenchConfig,
    "quickstart": QuickstartConfig,
}

AnyConfig = TypeVar("AnyConfig", bound=Config)


def load_config(path: Path, overrides: list[str], model: type[AnyConfig]) -> AnyConfig:
    """The configuration in the YAML file `path`, with `key=value` overrides on top.

    Raises:
        ConfigError: the file is missing, not YAML, or doesn't fit the model; one line per fault.
    """
    document = apply_overrides(read_yaml(path), overrides)
    return validate(document, model, where=str(path))


def load_any_config(path: Path, overrides: list[str]) -> Config:
    """The configuration in `path`, of the kind that its `kind:` key names."""
    document = apply_overrides(read_yaml(path), overrides)
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(
            f"{path}: kind: expected one of {', '.join(KINDS)}, found {kind!r}{did_you_mean(kind, KINDS)}"
        )
    return validate(document, KINDS[kind], where=str(path))


def dump_yaml(config: Config) -> str:
    """The configuration as YAML, every default written out; loading it gives an equal configuration."""
    return to_yaml(config.model_dump(mode="json"))


def find_config(name: str) -> Path:
    """The path of a configuration that comes with raysnap, such as `quickstart`."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "job_files", here.parent / "configs"):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise ConfigError(f"configs/{name}.yaml: not found beside the package at {here}; reinstall raysnap")


def validate(document: dict[str, Any], model: type[AnyConfig], where: str) -> AnyConfig:
    """The configuration in a document.

    Raises:
        ConfigError: it doesn't fit the model; `where` begins the message.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        found = error.errors(include_url=False)
        inner = {fault["loc"][:depth] for fault in found for depth in range(1, len(fault["loc"]))}
        faults = [_describe(fault, model, document) for fault in found if fault["loc"] not in inner]
        more = f" (and {len(faults) - 1} more: {'; '.join(faults[1:3])})" if len(faults) > 1 else ""
        raise ConfigError(f"{where}: {faults[0]}{more}") from None


_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "tuple_type": "a list",
    "too_short": "at least {min_length} in the list",
    "string_too_short": "at least {min_length} character",
    "model_type": "`key: value` lines",
    "dict_type": "`key: value` lines",
    "string_pattern_mismatch": "a name of lower-case letters, digits and underscores",
    "invalid_key": "a word as key",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
}


def _describe(fault: dict[str, Any], model: type[Config], document: dict[str, Any]) -> str:
    """One fault of a configuration as `key.path: expected …, found …`."""
    path = _written_path(fault["loc"], document) or "the whole"
    context, found = fault.get("ctx", {}), reprlib.repr(fault["input"])
    match fault["type"]:
        case "extra_forbidden":
            return f"{path}: unknown key{_nearest_key(model, fault['loc'])}"
        case "missing":
            return f"{path}: missing, and it has no default"
        case "value_error":
            return f"{path}: {fault['msg'].removeprefix('Value error, ')}"
        case "literal_error":
            hint = did_you_mean(fault["input"], re.findall(r"'([^']+)'", context["expected"]))
            return f"{path}: expected {context['expected']}, found {found}{hint}"
    known = _EXPECTED.get(fault["type"])
    expected = known.format(**context) if known else fault["msg"].removeprefix("Input should be ")
    return f"{path}: expected {expected}, found {found}"


def _written_path(loc: tuple[str | int, ...], document: Any) -> str:
    """The dotted path of a fault; a single value that stands for a list has no index."""
    parts = []
    for part in loc:
        is_there = isinstance(document, list) or (isinstance(document, dict) and part in document)
        document = document[part] if is_there else None
        if is_there or not isinstance(part, int):
            parts.append(str(part))
    return ".".join(parts)


def _nearest_key(model: type[Config], loc: tuple[str | int, ...]) -> str:
    """A hint at the key that was meant at `loc`: one spelt alike there, or one of that name further down."""
    *parents, word = (str(part) for part in loc)
    nested: type[Config] | None = model
    for part in parents:  # a name in a mapping of models, such as a group's, stays with its model
        nested = nested and (_model_at(nested, part) if part in nested.model_fields else nested)
    near = did_you_mean(word, nested.model_fields if nested else ())
    below = sorted((key for key in _dotted_keys(model) if key.endswith(f".{word}")), key=len)
    return near or (f"; did you mean {below[0]!r}?" if below else "")


def _dotted_keys(model: type[Config], prefix: str = "") -> Iterator[str]:
    for name in model.model_fields:
        yield prefix + name
        nested = _model_at(model, name)
        if nested:
            yield from _dotted_keys(nested, f"{prefix}{name}.")


def _model_at(model: type[Config], name: str) -> type[Config] | None:
    """The model that the field `name` holds, through `| None`; None for a field that holds none."""
    field = model.model_fields.get(name)
    candidates = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
    return next((one for one in candidates if isinstance(one, type) and issubclass(one, Config)), None)
