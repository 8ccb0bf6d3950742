"""How a rung's work is divided between workers: frozen data, made before any tensor is loaded.

The tree is cut into connected pieces, each with one worker that reads its blocks; items pass the workers in *waves*. A
piece takes its parent's outputs of the same wave, handed over where another worker made them, or runs that prefix again
where it is cheaper. A piece that is too much for one worker is shared by several, each with waves of its own, and each
reads its blocks.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Piece:
    """A connected part of the tree, the worker that runs it, and on which waves.

    Attributes:
        nodes: indices of its nodes, parents first.
        source: index of the node whose outputs it takes; None for pixels.
        exports: indices of its nodes whose outputs other pieces take.
        item_s: seconds that it computes for an item.
        read_s: seconds that its worker reads blocks for it, once.
    """

    nodes: tuple[int, ...]
    source: int | None
    worker: int
    waves: tuple[int, ...]
    item_s: float
    read_s: float
    exports: tuple[int, ...] = ()


@dataclass(frozen=True)
class Partition:
    """Which worker runs what on which items.

    Attributes:
        waves: ranges that together are the rung's items.
        pieces: in an order in which each comes after those it depends on.
    """

    num_workers: int
    waves: tuple[range, ...]
    pieces: tuple[Piece, ...]

    @cached_property
    def maker(self) -> dict[tuple[int, int, int], int]:
        """The piece that makes a source's outputs of a wave for a worker: its own where there is one.

        Outputs that are given to the search have no maker.
        """
        sources = {piece.source for piece in self.pieces if piece.source is not None}
        makers: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, piece in enumerate(self.pieces):
            for source in sources.intersection(piece.nodes):
                for wave in piece.waves:
                    makers[source, wave].append(number)
        found: dict[tuple[int, int, int], int] = {}
        for piece in self.pieces:
            if piece.source is None:
                continue
            for wave in piece.waves:
                numbers = makers.get((piece.source, wave))
                if numbers:
                    own = (number for number in numbers if self.pieces[number].worker == piece.worker)
                    found[piece.source, wave, piece.worker] = next(own, numbers[0])
        return found

    @cached_property
    def load_s(self) -> tuple[float, ...]:
        """Seconds that each worker reads and computes."""
        loads_s = [0.0] * self.num_workers
        for piece in self.pieces:
            loads_s[piece.worker] += piece.read_s + piece.item_s * sum(len(self.waves[wave]) for wave in piece.waves)
        return tuple(loads_s)

    def takes_from(self, number: int) -> dict[int, int]:
        """Return, for each of a piece's waves, the piece that makes its input, where one does."""
        piece = self.pieces[number]
        if piece.source is None:
            return {}
        makers = ((wave, self.maker.get((piece.source, wave, piece.worker))) for wave in piece.waves)
        return {wave: maker for wave, maker in makers if maker is not None}


def split_waves(num_items: int, wave_items: int) -> tuple[range, ...]:
    """Split items into ranges of `wave_items`; the last has the rest."""
    return tuple(range(start, min(num_items, start + wave_items)) for start in range(0, num_items, wave_items))
