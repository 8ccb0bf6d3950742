"""Read configurations from YAML files with `key=value` overrides, and write them.

A YAML file maps one to one onto a model; an unknown key is an error that suggests the closest known one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from pydantic import ValidationError

from raysnap.config.bench import BenchConfig
from raysnap.config.jobs import GenerateConfig, SynthesizeConfig
from raysnap.config.messages import describe_faults
from raysnap.config.quickstart import QuickstartConfig
from raysnap.config.strict import Config
from raysnap.config.sweep import SweepConfig
from raysnap.config.yaml_files import apply_overrides, read_yaml, to_yaml
from raysnap.errors import ConfigError
from raysnap.humanize import suggest

KINDS: dict[str, type[Config]] = {
    "generate": GenerateConfig,
    "sweep": SweepConfig,
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
        path: the file.
        overrides: `key=value` with dotted keys and values in YAML, as on the command line.
        model: the kind of job that it must be; None is the kind that the file's `kind:` key names.

    Raises:
        ConfigError: the file is missing, is not YAML or doesn't fit the model.
    """
    document = apply_overrides(read_yaml(Path(path)), list(overrides))
    if model is None:
        kind = document.get("kind")
        if not isinstance(kind, str) or kind not in KINDS:
            raise ConfigError(f"{path}: kind: expected one of {', '.join(KINDS)}, found {kind!r}{suggest(kind, KINDS)}")
        model = KINDS[kind]
    return validate(document, model, where=str(path))


def dump_yaml(config: Config) -> str:
    """Return the configuration as YAML with every default written out; loading it gives an equal configuration."""
    return to_yaml(config.model_dump(mode="json"))


def find_config(name: str) -> Path:
    """Return the path of a configuration that ships with raysnap, such as `quickstart`.

    Raises:
        ConfigError: no such configuration ships with this installation.
    """
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "job_files", here.parent / "configs"):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise ConfigError(f"configs/{name}.yaml: not found next to the package at {here}; reinstall raysnap")


def validate(document: dict[str, Any], model: type[AnyConfig], where: str) -> AnyConfig:
    """Return the configuration that a document holds.

    Raises:
        ConfigError: it doesn't fit the model; the message starts with `where`.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{where}: {describe_faults(error, model, document)}") from None
