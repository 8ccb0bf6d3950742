"""What an executor is made from, in this process or in a worker's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from raysnap.config.choices import Precision
from raysnap.config.parts import ShapesConfig
from raysnap.datasets.dataset import Dataset, open_dataset
from raysnap.models.numerics import Numerics
from raysnap.search.engine.block_shelf import Shelf
from raysnap.search.engine.executor import Executor
from raysnap.search.engine.items import ProbeItems
from raysnap.search.engine.work import Work
from raysnap.search.plan.tree import Candidate, PrefixTree
from raysnap.store.store import Store


@dataclass(frozen=True)
class Setup:
    """What `search` was told that its executors need."""

    store: Path
    data: str
    data_dir: Path
    shapes: ShapesConfig | None
    seed: int
    num_train: int | None
    num_test: int | None
    device: str | None
    precision: Precision
    deterministic: bool
    is_sharing: bool
    budget_bytes: int | None

    def absolute(self) -> Setup:
        """The same for a process in another folder."""
        data = str(Path(self.data).resolve()) if Path(self.data).is_dir() else self.data
        return replace(self, store=self.store.resolve(), data=data, data_dir=self.data_dir.resolve())

    def open_items(self, candidates: Sequence[Candidate]) -> tuple[Dataset, ProbeItems]:
        """The dataset and the items of it that the search looks at, decoded by whoever is first."""
        dataset = open_dataset(self.data, self.data_dir, self.shapes)
        return dataset, ProbeItems.open(dataset, candidates, self.seed, self.num_train, self.num_test)

    def pick_device(self) -> torch.device:
        """The device asked for, or else the GPU where there is one."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def numerics(self) -> Numerics:
        """How blocks compute on the device that this picks."""
        return Numerics.for_inference(self.precision, self.pick_device(), deterministic=self.deterministic)


@contextmanager
def open_executor(setup: Setup, store: Store, tree: PrefixTree, items: ProbeItems, work: Work) -> Iterator[Executor]:
    """An executor made from this, and from what is open already."""
    numerics = setup.numerics()
    with (
        numerics.applied(),
        Shelf(partial(store.read_block, device=numerics.device), numerics, work) as shelf,
        Executor(
            tree, items, shelf, work, numerics, is_sharing=setup.is_sharing, budget_bytes=setup.budget_bytes
        ) as executor,
    ):
        yield executor
