"""Synthetic snapshots for the search's tests: a base, and variants whose last blocks are initialised anew."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from raysnap.models import blocks
from raysnap.search.plan.tree import Candidate
from raysnap.search.probes.proxies import score_candidates
from raysnap.search.probes.score import Score
from raysnap.store.manifest import BlockEntry
from raysnap.store.preprocessing import Preprocessing
from raysnap.store.store import Store

PREPROCESSING = Preprocessing(resize_size=36, image_size=32)
NUM_CLASSES = 4

Blocks = list[tuple[str, dict[str, Tensor]]]


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch and BLAS on one thread: on a busy machine small work on two is many times slower."""
    num_threads = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(num_threads)


@lru_cache(maxsize=16)
def random_blocks(architecture: str, seed: int) -> Blocks:
    return blocks.random_tensors(architecture, NUM_CLASSES, seed)


def variant(architecture: str, seed: int, retrain_index: int, base_seed: int = 0) -> Blocks:
    """Return the base's blocks up to the last `retrain_index` and the head, which follow `seed`."""
    base, own = random_blocks(architecture, base_seed), random_blocks(architecture, seed)
    cut = len(base) - 1 - retrain_index
    return [*base[:cut], *own[cut:]]


def put(store: Store, name: str, snapshot_blocks: Blocks, architecture: str = "resnet18", **fields) -> str:
    """Add a snapshot and return its id."""
    fields = {"preprocessing": PREPROCESSING} | fields
    write = store.put_snapshot(
        architecture=architecture, blocks=snapshot_blocks, num_classes=NUM_CLASSES, name=name, **fields
    )
    return write.manifest.id


def candidate(
    name: str, digests: Sequence[str], architecture: str = "resnet18", preprocessing: Preprocessing = PREPROCESSING
) -> Candidate:
    """Return a candidate whose blocks go by these digests, one byte long each."""
    names = blocks.block_names(architecture)
    entries = tuple(BlockEntry(names[index], digest, 1) for index, digest in enumerate(digests))
    return Candidate(name, name, architecture, preprocessing, entries)


def digest(text: object) -> str:
    """Return a short text in the form of a digest."""
    return f"{text:0>64}"


class Pixels:
    """Random pixels in the place of a dataset's; `reads` says what was asked for."""

    def __init__(self, num_items: int, image_size: int = 32, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        shape = (num_items, 3, image_size, image_size)
        self.pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        self.reads: list[Sequence[int]] = []

    def read(self, positions: Sequence[int], preprocessing: Preprocessing) -> Tensor:  # noqa: ARG002 - a source's
        self.reads.append(positions)
        return self.pixels[list(positions)]

    def release(self) -> None:
        """Do nothing: these pixels stay."""


class BlockShelf:
    """Blocks by digest in memory; `reads` counts how often each was read."""

    def __init__(self, tensors: Mapping[str, Mapping[str, Tensor]]):
        self.tensors = tensors
        self.reads: list[str] = []

    def __call__(self, block_digest: str) -> Mapping[str, Tensor]:
        self.reads.append(block_digest)
        return self.tensors[block_digest]


def scored(
    proxy: str, train: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, seed: int = 0
) -> Score:
    """Return the score of a single candidate's features."""
    (score,) = score_candidates(proxy, [train], labels, [test], test_labels, seed)
    return score


def body_with_used_batch_norms(architecture):
    """Return the random tensors of a body, with batch norms that are not the identity that they begin as."""
    generator = torch.Generator().manual_seed(1)
    body = [tensors for _, tensors in blocks.random_tensors(architecture, 4, 0)[:-1]]
    for tensors in body:
        for name, tensor in tensors.items():
            if name.endswith("running_mean"):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
            elif name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return body
