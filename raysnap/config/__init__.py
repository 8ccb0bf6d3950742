"""Configuration of every kind of job: pydantic models, read from YAML files and `key=value` overrides."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raysnap.config.bench import BenchConfig
    from raysnap.config.jobs import GenerateConfig, SynthesizeConfig
    from raysnap.config.load import load_config
    from raysnap.config.quickstart import QuickstartConfig
    from raysnap.config.sweep import FinetuneConfig, SweepConfig

__all__ = [
    "BenchConfig",
    "FinetuneConfig",
    "GenerateConfig",
    "QuickstartConfig",
    "SweepConfig",
    "SynthesizeConfig",
    "load_config",
]

if not TYPE_CHECKING:  # importing the models takes longer than `raysnap --help` may

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module("raysnap.config.load"), name)
