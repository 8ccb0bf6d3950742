"""Read configurations from YAML files with `key=value` overrides, and write them.

A YAML file maps one to one onto a model; an unknown key is an error that suggests the closest known one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from pydantic import ValidationError

from raysnap.config.bench import BenchConfig
from raysnap.config.folders import FOLDERS_FOLLOW, expanded
from raysnap.config.jobs import GenerateConfig, SynthesizeConfig
from raysnap.config.messages import describe_faults
from raysnap.config.quickstart import QuickstartConfig
from raysnap.config.strict import Config
from raysnap.config.sweep import FinetuneConfig, SweepConfig
from raysnap.config.yaml_files import apply_overrides, read_yaml, to_yaml
from raysnap.errors import ConfigError
from raysnap.humanize import suggest

KINDS: dict[str, type[Config]] = {
    "generate": GenerateConfig,
    "sweep": SweepConfig,
    "finetune": FinetuneConfig,
    "synthesize": SynthesizeConfig,
    "bench": BenchConfig,
    "quickstart": QuickstartConfig,
}

AnyConfig = TypeVar("AnyConfig", bound=Config)


@overload
def load_config(path: Path | str, overrides: Sequence[str], model: type[AnyConfig]) -> AnyConfig: ...
@overload
def load_config(path: Path | str, overrides: Sequence[str] = (), model: None = None) -> Config: ...
def load_config(path: Path | str, overrides: Sequence[str] = (), model: type[Config] | None = None) -> Config:
    """Return the configuration in a YAML file, with `key=value` overrides on top.

    >>> job = raysnap.load_config("configs/quickstart.yaml", ["generate.num_snapshots=4"])
    >>> type(job).__name__, job.generate.num_snapshots
    ('QuickstartConfig', 4)

    Args:
        path: the file, or the bare name of one that ships with raysnap, such as `trained_snapshots_small`.
        overrides: `key=value` with dotted keys and values in YAML, as on the command line.
        model: the kind of job that it must be; None is the kind that the file's `kind:` key names.

    Raises:
        ConfigError: the file is missing, is not YAML or doesn't fit the model.
    """
    path = _shipped(Path(expanded(path)))
    document = apply_overrides(read_yaml(path), list(overrides))
    if model is None:
        kind = document.get("kind")
        if not isinstance(kind, str) or kind not in KINDS:
            raise ConfigError(f"{path}: kind: expected one of {', '.join(KINDS)}, found {kind!r}{suggest(kind, KINDS)}")
        model = KINDS[kind]
    config = validate(document, model, where=str(path))
    if isinstance(config, SweepConfig):
        _check_effect(config, overrides, where=str(path))
    return config


def _check_effect(config: SweepConfig, overrides: Sequence[str], where: str) -> None:
    """Check that no override is without effect, as the space chooses another value for every trial.

    Raises:
        ConfigError: one is; the message says how to take the key out of the space.
    """
    for given in _leaves(apply_overrides({}, list(overrides))):
        key = {"architectures": "architecture", "datasets": "dataset"}.get(given, given)
        for chosen, entries in config.space.items():
            if f"{key}.".startswith(f"{chosen}.") and not all(entry.when for entry in entries):
                raise ConfigError(
                    f"{where}: {given}: expected no value for what the space chooses, found one, which would have no "
                    f"effect: add space.{chosen}=null to take {chosen} out of the space, or change space.{chosen}"
                )


def _leaves(document: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys that a document gives values to."""
    for key, value in document.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def dump_yaml(config: Config) -> str:
    """Return the configuration as YAML with every default written out; loading it gives an equal configuration."""
    return to_yaml(config.model_dump(mode="json"))


def find_config(name: str) -> Path:
    """Return the path of a configuration that ships with raysnap, such as `quickstart`.

    Raises:
        ConfigError: no such configuration ships with this installation.
    """
    found = shipped_configs()
    if name not in found:
        known = ", ".join(sorted(found))
        raise ConfigError(
            f"{name}: expected a configuration file, or the name of one that ships with raysnap ({known}), found "
            f"neither{suggest(name, found)}"
        )
    return found[name]


def shipped_configs() -> dict[str, Path]:
    """Return the configurations that ship with raysnap by name, in alphabetical order.

    Raises:
        ConfigError: none do: this installation is not whole.
    """
    here = Path(__file__).resolve().parents[1]
    folder = next((place for place in (here / "job_files", here.parent / "configs") if place.is_dir()), here)
    found = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if not found:
        raise ConfigError(f"configs/: not found next to the package at {here}; reinstall raysnap")
    return found


def _shipped(path: Path) -> Path:
    """Return the shipped configuration that a bare name means, so that it needs no path on a cluster; or the path."""
    is_bare = path.name == str(path) and not path.suffix
    return find_config(path.name) if is_bare and not path.exists() else path


def validate(document: dict[str, Any], model: type[AnyConfig], where: str) -> AnyConfig:
    """Return the configuration that a document holds.

    Raises:
        ConfigError: it doesn't fit the model; the message starts with `where`.
    """
    try:
        return model.model_validate(document, context={FOLDERS_FOLLOW: model is QuickstartConfig})
    except ValidationError as error:
        raise ConfigError(f"{where}: {describe_faults(error, model, document)}") from None
