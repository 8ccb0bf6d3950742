"""Check that the optional packages a job needs are installed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

from raysnap.config.sweep import SweepConfig
from raysnap.errors import ConfigError


def check_packages(config: SweepConfig) -> None:
    """Check that the package that only some sweeps need is installed.

    Raises:
        ConfigError: it is missing.
    """
    if config.search_algorithm == "optuna" and importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            "search_algorithm: expected the package optuna for `search_algorithm: optuna`, found none; "
            "`pip install 'raysnap[optuna]'`, or leave it out"
        )


_NEEDED = {"mlflow": ("mlflow", "sqlalchemy", "alembic"), "wandb": ("wandb",)}


def check_trackers(names: Sequence[str]) -> None:
    """Check that every tracker can be used; call it before anything is started or written.

    Raises:
        ConfigError: a package is missing, or W&B has no key to log in with.
    """
    for name in names:
        missing = [package for package in _NEEDED[name] if importlib.util.find_spec(package) is None]
        if missing:
            raise ConfigError(
                f"trackers: {name}: expected the package {missing[0]}, found none; install it with "
                f"`pip install 'raysnap[{name}]'`, or leave {name} out"
            )
    if "wandb" in names and os.environ.get("WANDB_MODE") not in ("offline", "disabled", "dryrun"):
        import wandb

        if not wandb.login(prompt=False):
            raise ConfigError(
                "trackers: wandb: expected a key of Weights & Biases, found none; run `wandb login`, or set "
                "WANDB_MODE=offline to keep the records in the run directory"
            )
