"""Configuration of a benchmark: timed searches, in groups."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, model_validator

from raysnap.config.bench_grid import BenchGrid
from raysnap.config.folders import AnyFolder, BucketAddress, Folder, are_replaced, folder_fault
from raysnap.config.jobs import JobConfig, SyntheticRecipe
from raysnap.errors import ConfigError
from raysnap.humanize import suggest


class BenchConfig(BenchGrid, JobConfig):
    """Timed searches: grids of methods, stores, datasets and sizes, each cell repeated.

    >>> raysnap.BenchConfig(datasets=["shapes-shape-a"], methods=["shared", "nested"]).methods
    ('shared', 'nested')
    """

    kind: Literal["bench"] = "bench"
    run_dir: Folder = Field(Path("runs/bench"), description="Folder of this run's records, created if needed.")
    groups: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], BenchGrid] = Field(
        {},
        description="Grids by name; each inherits the top-level keys that it doesn't set. Without groups, those keys "
        "are the grid.",
    )
    synthetic_sets: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], SyntheticRecipe] = Field(
        {}, description="Stores of synthetic snapshots by name, created when first needed; `store` may refer to them."
    )
    synthetic_dir: AnyFolder = Field(
        Path("synthetic"), description="Folder of the stores of `synthetic_sets`; later runs reuse them."
    )

    @model_validator(mode="before")
    @classmethod
    def _groups_inherit(cls, document: Any) -> Any:
        """Give each group the keys of the grid that it doesn't set itself."""
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

    @model_validator(mode="after")
    def _keeps_its_stores(self, info: ValidationInfo) -> BenchConfig:
        if are_replaced(info):
            return self
        for name, grid in self.grids.items():
            for store in grid.store:
                is_kept = str(store) in self.synthetic_sets or isinstance(store, BucketAddress)
                fault = None if is_kept else folder_fault(store)
                if fault is not None:
                    raise ValueError(f"{f'groups.{name}.' if name else ''}store: {fault}")
        fault = folder_fault(self.synthetic_dir) if self.synthetic_sets else None
        if fault is not None:
            raise ValueError(f"synthetic_dir: {fault}")
        return self

    @property
    def grids(self) -> dict[str | None, BenchGrid]:
        """The groups by name, or the grid of the keys outside under None where there are no groups."""
        named: Iterable[tuple[str | None, BenchGrid]] = self.groups.items()
        return dict(named) or {None: self}

    def only(self, names: Collection[str]) -> BenchConfig:
        """Return the benchmark with only the groups of these names; without names, all of it.

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
