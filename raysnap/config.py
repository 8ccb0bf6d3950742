"""What a job may be told: frozen pydantic models, read from YAML files and `key=value` overrides.

A YAML file maps one to one onto a model; a key the model doesn't know is refused with the nearest one it does.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from raysnap.choices import TrackerName
from raysnap.errors import ConfigError
from raysnap.grid import BenchGrid
from raysnap.sections import Config, Section, refuse_repeated

MAX_CONFIG_BYTES = 100_000  # a second's worth of PyYAML


class TrainConfig(Section):
    """How one fine-tune is trained."""

    epochs: int = Field(5, ge=1, le=10_000, description="Passes over the training items.")
    batch_size: int = Field(64, ge=1, le=65_536, description="Items per optimizer step.")
    lr: float = Field(1e-3, gt=0, le=100, description="Learning rate.")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="The torch.optim optimizer.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD; the others ignore it.")
    weight_decay: float = Field(0.0, ge=0, le=10, description="L2 penalty (decoupled for adamw).")
    views: int | None = Field(
        1,
        ge=1,
        le=1000,
        description="Fixed augmented views of each training item, used in turn by the epochs; 1 is none, null is a "
        "fresh one each epoch.",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="What blocks compute in; auto is float32 on a CPU, bfloat16 on a GPU that has it, else float16.",
    )
    channels_last: bool | None = Field(
        None, description="Memory layout of convolutions; null is what is fast: yes on a GPU, no on a CPU."
    )
    compile: bool = Field(False, description="torch.compile of the trained blocks.")
    deterministic: bool = Field(
        False, description="Only deterministic kernels: the same seed gives the same bytes on the same machine."
    )
    checkpoint_every: int | None = Field(
        None, ge=1, description="Epochs between checkpoints that a killed trial goes on from; null is only the last."
    )


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


class GenerateConfig(JobConfig):
    """A population of fine-tuned snapshots."""

    kind: Literal["generate"] = "generate"
    run_dir: Path = Field(Path("runs/generate"), description="Folder of this run's records; made by the run.")
    architectures: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        ("resnet18",), min_length=1, description="torchvision builder names."
    )
    num_snapshots: int = Field(8, ge=1, le=1_000_000, description="Fine-tuned snapshots, the bases not counted.")
    num_val: int | None = Field(None, ge=1, description="Validation items used per dataset; null is all.")
    train: TrainConfig = Field(TrainConfig(), description="How each snapshot is fine-tuned.")
    retrain: RetrainConfig = Field(RetrainConfig(), description="How many blocks each trial retrains.")
    base: BaseConfig = Field(BaseConfig(), description="Where fine-tunes start from.")
    prefix_cache_bytes: int = Field(
        10 * 2**30, ge=0, description="Room for the cached outputs of frozen blocks, per machine; 0 is no cache."
    )
    trackers: tuple[TrackerName, ...] = Field(
        (), description="Who is told of the trials besides TensorBoard's event files: mlflow, wandb."
    )


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
                    f"group {name!r}: expected one of {known}, found no such group{_did_you_mean(name, self.groups)}"
                )
        kept = {name: grid for name, grid in self.groups.items() if name in names}
        return self.model_copy(update={"groups": kept}) if names else self


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
    return _validate(document, model, where=str(path))


def load_any_config(path: Path, overrides: list[str]) -> Config:
    """The configuration in `path`, of the kind that its `kind:` key names."""
    document = apply_overrides(read_yaml(path), overrides)
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(
            f"{path}: kind: expected one of {', '.join(KINDS)}, found {kind!r}{_did_you_mean(kind, KINDS)}"
        )
    return _validate(document, KINDS[kind], where=str(path))


def dump_yaml(config: Config) -> str:
    """The configuration as YAML, every default written out; loading it gives an equal configuration."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def find_config(name: str) -> Path:
    """The path of a configuration that comes with raysnap, such as `quickstart`."""
    here = Path(__file__).resolve().parent
    for folder in (here / "configs", here.parent / "configs"):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise ConfigError(f"configs/{name}.yaml: not found beside the package at {here}; reinstall raysnap")


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: `1e-3` is a number, a date is text, a key stands once, aliases don't multiply."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key has to be a word, found a list or a mapping", key_node.start_mark
                )
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} stands twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: yaml.Node, index: object) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not supported", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back: text that looks like a number is quoted, odd line ends are escaped."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        is_odd = any(line_end in text for line_end in "\x85\u2028\u2029")
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if is_odd else None)


_Dumper.add_representer(str, _Dumper.represent_text)


for _side in (_Loader, _Dumper):
    _side.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
    )

# Besides YAMLError, what PyYAML's constructors let through for `!!int ""`, `!!bool x` and the like.
_NOT_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except _NOT_YAML as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or (str(error).splitlines() or ["a value can't be read"])[0]
        if problem.startswith("but "):
            problem = f"{error.context} {problem}"
        raise ConfigError(f"{where}{line}: not valid YAML: {problem}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, too large, not YAML or not a mapping.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: can't be read as a configuration file: {error.strerror}") from None
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path}: expected at most {MAX_CONFIG_BYTES} bytes, found more")
    try:
        document = _parse_yaml(raw.decode("utf-8"), str(path))
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: expected UTF-8 text, found other bytes") from None
    if not isinstance(document, dict):
        found = "nothing" if document is None else type(document).__name__
        raise ConfigError(f"{path}: expected `key: value` lines, found {found}")
    return document


def apply_overrides(document: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A copy of `document` with each `dotted.key=value` set; values are read as YAML."""
    result = _copy(document)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", key):
            raise ConfigError(f"{override!r}: expected key=value, for example train.epochs=3")
        *parents, last = key.split(".")
        target = result
        for parent in parents:
            child = target.get(parent)
            target[parent] = child if isinstance(child, dict) else {}
            target = target[parent]
        target[last] = _parse_yaml(value, f"{key}=")
    return result


def _copy(value: Any) -> Any:
    return {key: _copy(child) for key, child in value.items()} if isinstance(value, dict) else value


def _validate(document: dict[str, Any], model: type[AnyConfig], where: str) -> AnyConfig:
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
            hint = _did_you_mean(fault["input"], re.findall(r"'([^']+)'", context["expected"]))
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
    near = _did_you_mean(word, nested.model_fields if nested else ())
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


def _did_you_mean(word: object, known: Any) -> str:
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
