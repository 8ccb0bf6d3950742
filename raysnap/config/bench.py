"""What a benchmark of timed searches is configured with."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raysnap.config.bench_grid import BenchGrid
from raysnap.config.jobs import JobConfig, SyntheticRecipe
from raysnap.errors import ConfigError
from raysnap.humanize import suggest


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
                    f"group {name!r}: expected one of {known}, found no such group{suggest(name, self.groups)}"
                )
        kept = {name: grid for name, grid in self.groups.items() if name in names}
        return self.model_copy(update={"groups": kept}) if names else self
