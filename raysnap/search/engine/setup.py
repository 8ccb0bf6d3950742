"""Make an executor from a search's options, in this process or in a worker's.

What computes imports torch when it is called: a search is planned without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from raysnap.config.folders import StorePath, absolute
from raysnap.config.search_options import SearchOptions
from raysnap.datasets.dataset import Dataset, open_dataset
from raysnap.search.engine.items import DrawnItems, ProbeItems
from raysnap.search.engine.work import Work
from raysnap.search.plan.choice import Choice
from raysnap.search.plan.rungs import shares_prefixes
from raysnap.search.plan.tree import Candidate, PrefixTree
from raysnap.store.store import TokenizerReader
from raysnap.system import free_memory_bytes

if TYPE_CHECKING:
    import torch

    from raysnap.models.numerics import Numerics
    from raysnap.search.engine.executor import Executor
    from raysnap.search.engine.source import BlockReader, OnShare

FREE_SHARE = 0.8  # the rest is for libraries, and for what else begins to run on the machine


@dataclass(frozen=True)
class Setup:
    """What a search's executors are made from, in this process or in a worker's: a store, a dataset, the options."""

    store: StorePath
    data: str
    options: SearchOptions

    @property
    def is_sharing(self) -> bool:
        """Whether candidates share the blocks that they begin with."""
        return shares_prefixes(self.options.method)

    def absolute(self) -> Setup:
        """Return the same for a process in another folder."""
        data = str(Path(self.data).resolve()) if Path(self.data).is_dir() else self.data
        options = self.options.model_copy(update={"data_dir": self.options.data_dir.resolve()})
        return Setup(absolute(self.store), data, options)

    def narrowed(self, choice: Choice) -> Setup:
        """Return the same with the method and the items that were chosen."""
        chosen = {"method": choice.method, "num_train": choice.num_train, "num_test": choice.num_test}
        return replace(self, options=self.options.model_copy(update=chosen))

    def open_dataset(self) -> Dataset:
        """Open the dataset that the search asks about."""
        return open_dataset(self.data, self.options.data_dir, self.options.shapes)

    def draw_items(self, dataset: Dataset, candidates: Sequence[Candidate]) -> DrawnItems:
        """Draw the items of the dataset that the search uses."""
        tokenizers = TokenizerReader(self.store)
        return DrawnItems.draw(dataset, candidates, self.options, tokenizers)

    def open_items(self, candidates: Sequence[Candidate]) -> ProbeItems:
        """Open the items that the search uses; the first process to do so decodes them."""
        drawn = self.draw_items(self.open_dataset(), candidates)
        return drawn.decode(len(drawn.train), len(drawn.test))

    def pick_device(self) -> torch.device:
        """Return the device asked for, or else the GPU where there is one."""
        import torch

        return torch.device(self.options.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def memory_bytes(self) -> int:
        """Return the bound on memory: the one asked for, or most of what the device has free."""
        import torch

        if self.options.memory_bytes is not None:
            return self.options.memory_bytes
        device = self.pick_device()
        free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory_bytes()
        return int(FREE_SHARE * free_bytes)

    def numerics(self) -> Numerics:
        """Return how blocks compute on the device that this picks."""
        from raysnap.models.numerics import Numerics

        return Numerics.for_inference(
            self.options.precision, self.pick_device(), deterministic=self.options.deterministic
        )


@contextmanager
def open_executor(
    setup: Setup,
    blocks: BlockReader,
    tree: PrefixTree,
    items: ProbeItems,
    work: Work,
    on_share: OnShare | None = None,
) -> Iterator[Executor]:
    """Make an executor from the setup and from what is open already."""
    from raysnap.search.engine.block_shelf import Shelf, pick_num_readers
    from raysnap.search.engine.executor import Executor
    from raysnap.search.engine.source import ignore_share

    numerics, memory_bytes = setup.numerics(), setup.memory_bytes()
    num_readers = pick_num_readers(tree.nodes, memory_bytes // setup.options.workers)
    with (
        numerics.applied(),
        Shelf(partial(blocks.read_block, device=numerics.device), numerics, work, num_readers) as shelf,
        Executor(
            tree,
            items,
            shelf,
            work,
            numerics,
            is_sharing=setup.is_sharing,
            budget_bytes=setup.options.budget_bytes,
            memory_bytes=memory_bytes,
            on_share=on_share or ignore_share,
        ) as executor,
    ):
        yield executor
