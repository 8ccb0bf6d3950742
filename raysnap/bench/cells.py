"""Plan a benchmark's cells before anything is written: each is one question, answered by one method in one setting.

A question is what methods are compared on: a store, a dataset, how many items of what size, a budget, a proxy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from raysnap.canonical_json import canonical_json
from raysnap.config.bench import BenchConfig
from raysnap.config.bench_grid import BenchGrid
from raysnap.config.folders import StorePath, absolute
from raysnap.config.jobs import SynthesizeConfig, SyntheticRecipe
from raysnap.config.search_options import SearchOptions
from raysnap.datasets.dataset import find_dataset, open_dataset
from raysnap.errors import ConfigError
from raysnap.planning.synthetic import plan_synthesize
from raysnap.runs.json_fields import read_rows
from raysnap.search.candidates import find_candidates
from raysnap.search.plan.tree import Candidate
from raysnap.store.store import Store
from raysnap.training.trial import slug

# What distinguishes a cell's row from others, apart from its name.
AXES = (
    "group",
    "store",
    "dataset",
    "where",
    "num_train",
    "num_test",
    "image_size",
    "budget_bytes",
    "proxy",
    "method",
    "cache",
    "tolerance",
    "precision",
    "io_limit_mib_per_s",
    "detail",
    "seed",
)


@dataclass(frozen=True)
class Cell:
    """One question put to one method; fields without an explanation are those of `BenchGrid`.

    Attributes:
        name: unique in the benchmark, and the same in every run of it.
        group: the grid it belongs to; None where there is only one.
        store: the store as the configuration names it.
        store_dir: the store's folder or address.
        dataset: the dataset's name, in the characters that file names may have.
        data: what `open_dataset` finds it by.
        options: the options of its searches.
    """

    name: str
    group: str | None
    store: str
    store_dir: StorePath
    dataset: str
    data: str
    options: SearchOptions
    cache: str
    io_limit_mib_per_s: float | None
    detail: str
    repeats: int
    num_warmups: int

    @property
    def axes(self) -> dict[str, Any]:
        """Where the cell is in its benchmark, as plain values."""
        return {"cell": self.name} | {key: self._axis(key) for key in AXES}

    @property
    def question(self) -> tuple[Any, ...]:
        """What methods and page cache states are compared on."""
        return tuple(self._axis(key) for key in AXES if key not in ("method", "cache"))

    @property
    def image_size(self) -> int:
        """The edge of the square that models see, in pixels: a grid always names one."""
        assert self.options.image_size is not None
        return self.options.image_size

    def _axis(self, key: str) -> Any:
        return getattr(self.options if key in SearchOptions.model_fields else self, key)

    def candidates(self) -> list[Candidate]:
        """Find the snapshots that its searches rank.

        Raises:
            RaysnapError: there is no such store, or no such snapshot in it.
        """
        return find_candidates(Store.open(self.store_dir), self.options.where, self.options.image_size)


@dataclass(frozen=True)
class SyntheticSet:
    """A store of synthetic snapshots that benchmarks share: its folder is named after its recipe."""

    recipe: SyntheticRecipe
    path: Path

    @classmethod
    def of(cls, recipe: SyntheticRecipe, synthetic_dir: Path) -> SyntheticSet:
        """Return the set of a recipe, in the folder of synthetic sets."""
        digest = blake3(canonical_json(recipe.model_dump(mode="json"))).hexdigest()[:8]
        what = f"{'+'.join(recipe.architectures)}-{recipe.retrain.distribution}-{recipe.num_snapshots}"
        return cls(recipe, synthetic_dir.resolve() / f"{slug(what)}-{digest}")

    @property
    def config(self) -> SynthesizeConfig:
        """The job that makes the set."""
        places = {"store": self.path / "store", "run_dir": self.path / "run"}
        return SynthesizeConfig.model_validate(self.recipe.model_dump() | places)

    @property
    def is_made(self) -> bool:
        """Whether all its snapshots are there."""
        made = {row.get("trial") for row in read_rows(self.path / "run" / "results.jsonl")}
        return len(made) >= self.recipe.num_snapshots


def find_sets(config: BenchConfig) -> dict[str, SyntheticSet]:
    """Return the synthetic sets that the benchmark's grids name, made or not."""
    named = {str(store) for grid in config.grids.values() for store in grid.store}
    sets = {name: SyntheticSet.of(recipe, config.synthetic_dir) for name, recipe in config.synthetic_sets.items()}
    return {name: synthetic for name, synthetic in sets.items() if name in named}


def expand(config: BenchConfig) -> list[Cell]:
    """Return the benchmark's cells, question by question; no store or dataset is read.

    Raises:
        ConfigError: two of them would have the same name.
    """
    sets = find_sets(config)
    cells = [cell for group, grid in config.grids.items() for cell in _expand_grid(config, group, grid, sets)]
    seen: dict[str, Cell] = {}
    for cell in cells:
        other = seen.setdefault(cell.name, cell)
        if other is not cell:
            raise ConfigError(
                f"cell {cell.name!r}: names both {other.data!r} in {other.store} and {cell.data!r} in {cell.store}; "
                "rename a folder or split the group"
            )
    return cells


def _expand_grid(
    config: BenchConfig, group: str | None, grid: BenchGrid, sets: dict[str, SyntheticSet]
) -> Iterator[Cell]:
    questions = grid.questions(seed=config.seed, data_dir=config.data_dir.resolve(), shapes=config.shapes)
    for (store, data, cache), options in questions:
        parts = [*([group] if group else []), *_varied_parts(grid, store, options)]
        state = [cache] if len(grid.cache) > 1 else []
        dataset = slug(data)
        yield Cell(
            name=".".join([*parts, *state, dataset, options.proxy, options.method]),
            group=group,
            store=str(store),
            store_dir=sets[str(store)].path / "store" if str(store) in sets else absolute(store),
            dataset=dataset,
            data=str(Path(data).resolve()) if Path(data).is_dir() else data,
            options=options,
            cache=cache,
            io_limit_mib_per_s=grid.io_limit_mib_per_s,
            detail=grid.detail,
            repeats=grid.repeats,
            num_warmups=grid.num_warmups,
        )


def _varied_parts(grid: BenchGrid, store: StorePath, options: SearchOptions) -> list[str]:
    """Return a part of a cell's name for each axis with several values."""
    varied = (
        (slug(str(store)), grid.store),
        (slug(options.where or "all-snapshots"), grid.where),
        (f"{_count(options.num_train)}+{_count(options.num_test)}", grid.item_counts),
        (f"{options.image_size}px", grid.image_size),
        (f"{options.budget_bytes}B" if options.budget_bytes else "no-budget", grid.budget_bytes),
    )
    return [part for part, axis in varied if len(axis) > 1]


def _count(num_items: int | None) -> str:
    return "all" if num_items is None else str(num_items)


def plan_bench(config: BenchConfig) -> list[Cell]:
    """Return the benchmark's cells, checked against stores and datasets; nothing is written.

    Raises:
        RaysnapError: a store or a dataset is missing or unusable, a set can't be made, or no snapshot matches `where`.
    """
    cells = expand(config)
    missing_sets = [synthetic for synthetic in find_sets(config).values() if not synthetic.is_made]
    for synthetic in missing_sets:
        plan_synthesize(synthetic.config)
    made_later = {synthetic.path / "store" for synthetic in missing_sets}
    distinct = {(cell.store_dir, cell.options.where, cell.options.image_size): cell for cell in cells}
    for cell in distinct.values():
        if cell.store_dir not in made_later:
            cell.candidates()
    for data in dict.fromkeys(cell.data for cell in cells):
        if find_dataset(data, config.data_dir, config.shapes) is not None:
            open_dataset(data, config.data_dir, config.shapes)
    return cells
