"""The inputs of the trained blocks: the items of a split in one view, after the frozen blocks.

Items are images or texts: pixels become inputs by normalising them, and may be augmented; tokens are inputs.

Frozen blocks run in eval mode without autograd. Where a cache has room, the outputs of the first of them are computed
once and then read; those between the cached depth and the trained blocks run on every batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raysnap.datasets.augmentation import augment_and_normalise, item_draws, normalise
from raysnap.models.numerics import Numerics
from raysnap.store.preprocessing import AnyPreprocessing, TextPreprocessing
from raysnap.training.prefix_cache import CachedOutputs, PrefixCache

logger = logging.getLogger(__name__)


def model_inputs(
    items: Tensor, preprocessing: AnyPreprocessing, numerics: Numerics, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the input of a model's first block on the device: normalised pixels, or tokens as they are."""
    items = items.to(numerics.device, non_blocking=True)
    if isinstance(preprocessing, TextPreprocessing):
        return items
    return numerics.lay_out_images(normalise(items, preprocessing.mean, preprocessing.std, dtype))


@dataclass(frozen=True)
class LabelledItems:
    """The items of one split.

    Attributes:
        read: takes item positions and an edge S in pixels, returns centre crops of images, uint8 `[n, 3, S, S]`, or
            tokens of texts, int64 `[n, T]`.
        labels: class indices, int64 `[N]`.
        digest: identifies the items' content and order; without one nothing of them is cached.
        names: of the items, for reports of single ones.
        bad: items of the split that could not be read and are no items, each with its file and the reason.
    """

    read: Callable[[Sequence[int], int], Tensor]
    labels: Tensor
    digest: str | None = None
    names: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()


@dataclass(frozen=True)
class View:
    """One fixed augmentation of every item, the same for the same seed and number whatever the batch."""

    seed: int
    number: int


Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes images and their labels, returns mixed images and soft labels `[N, num_classes]`."""


@dataclass(frozen=True)
class Feed:
    """The trained blocks' inputs by item positions, on the device and valid until the next call; and all labels.

    Attributes:
        mixed: the inputs of items that are mixed with each other, and their soft labels; None without mixing.
    """

    inputs: Callable[[Tensor], Tensor]
    labels: Tensor
    mixed: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None

    def batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs to train on and their targets: class indices, or soft labels of mixed ones."""
        if self.mixed is not None:
            return self.mixed(positions)
        return self.inputs(positions), self.labels[positions.to(self.labels.device)]


class FrozenPrefix:
    """The frozen blocks of one model, and what is cached of them; closing it releases the cache.

    Args:
        frozen: the blocks that are not trained (possibly none), in eval mode.
        digests: of the frozen blocks.
        cache: where outputs may be cached; None computes them for every batch.
        verify: called before anything is written into the cache; raises where the blocks aren't what `digests` says.
    """

    def __init__(
        self,
        frozen: nn.Sequential,
        preprocessing: AnyPreprocessing,
        numerics: Numerics,
        *,
        digests: Sequence[str] = (),
        cache: PrefixCache | None = None,
        verify: Callable[[], None] = lambda: None,
    ):
        self._frozen = frozen
        self._preprocessing = preprocessing
        self._numerics = numerics
        self._digests = tuple(digests)
        self._cache = cache
        self._verify = verify
        self._depth = min(cache.depth, len(frozen)) if cache else 0
        self._readers: dict[tuple[str, View | None], Callable[[Tensor], Tensor] | None] = {}
        self._resources = ExitStack()
        self._form: tuple[tuple[int, ...], torch.dtype] | None = None
        self._augmented: Tensor | None = None

    def __enter__(self) -> FrozenPrefix:
        return self

    def __exit__(self, *_: object) -> None:
        self._readers.clear()
        self._resources.close()

    def feed(self, items: LabelledItems, view: View | None = None, *, is_fixed: bool = True) -> Feed:
        """Return the items in one view, which is cached where it is fixed and there is room."""
        labels = items.labels.to(self._numerics.device)
        if isinstance(self._preprocessing, TextPreprocessing):
            view, is_fixed = None, True  # texts are not augmented
        if not self._depth or items.digest is None or not is_fixed:
            return Feed(lambda positions: self._run(self._frozen, self._images(items, view, positions)), labels)
        key = (items.digest, view)
        if key not in self._readers:
            self._readers[key] = self._cached(items, view)
        read = self._readers[key]
        if read is None:
            return self.feed(items, view, is_fixed=False)
        return Feed(lambda positions: self._run(self._frozen[self._depth :], read(positions)), labels)

    def mixed_feed(self, items: LabelledItems, view: View | None, mix: Mix) -> Feed:
        """Return the items in one view, their pixels mixed in every batch, so that nothing is cached."""
        plain = self.feed(items, view, is_fixed=False)

        def mixed(positions: Tensor) -> tuple[Tensor, Tensor]:
            images, targets = mix(self._images(items, view, positions), plain.labels[positions.to(plain.labels.device)])
            return self._run(self._frozen, self._numerics.lay_out_images(images)), targets

        return Feed(plain.inputs, plain.labels, mixed)

    @torch.no_grad()
    def _run(self, blocks: nn.Sequential, inputs: Tensor) -> Tensor:
        with self._numerics.autocast():
            return blocks(inputs)

    def _images(self, items: LabelledItems, view: View | None, positions: Tensor) -> Tensor:
        shape = self._preprocessing
        edge = shape.image_size if view is None else shape.resizing.kept_size
        found = items.read(positions.tolist(), edge)
        if view is None or isinstance(shape, TextPreprocessing):
            return model_inputs(found, shape, self._numerics)
        pixels = found.to(self._numerics.device)
        images = augment_and_normalise(
            pixels,
            item_draws(view.seed, view.number, positions),
            shape.image_size,
            mean=shape.mean,
            std=shape.std,
            memory_format=self._numerics.memory_format,
            out=self._previous_batch(len(positions)),
        )
        if self._numerics.device.type == "cpu" and (self._augmented is None or len(self._augmented) < len(images)):
            self._augmented = images
        return images

    def _previous_batch(self, num_items: int) -> Tensor | None:
        """Return the previous batch's buffer to be reused: callers must not keep a batch after requesting the next."""
        before = self._augmented
        if before is None or len(before) < num_items or before.is_inference() != torch.is_inference_mode_enabled():
            return None
        return before[:num_items]

    def _cached(self, items: LabelledItems, view: View | None) -> Callable[[Tensor], Tensor] | None:
        """Return a reader of the first blocks' outputs, after caching them; None where they can't be cached."""
        if self._cache is None:
            return None
        try:
            outputs = self._open(self._cache, items, view)
        except OSError as error:
            reason = error.strerror or error
            logger.warning("prefix cache %s: %s; frozen blocks run in every epoch", self._cache.place, reason)
            outputs = None
        if outputs is None:
            self._cache = None
            return None
        device, has_last_channels = self._numerics.device, self._has_last_channels(outputs.item_shape)

        def read(positions: Tensor) -> Tensor:
            found = outputs.read(positions, device)
            return found.permute(0, 3, 1, 2) if has_last_channels else found

        return read

    def _open(self, cache: PrefixCache, items: LabelledItems, view: View | None) -> CachedOutputs | None:
        """Return the cached outputs, complete; None where the cache has no room."""
        item_shape, dtype = self._stored_form()
        outputs = cache.open(self._key(items, view), len(items.labels), item_shape, dtype)
        if outputs is None:
            return None
        self._resources.callback(outputs.close)
        if outputs.is_complete:
            return outputs
        self._verify()
        blocks = self._frozen[: self._depth]

        def compute(positions: Tensor) -> Tensor:
            computed = self._run(blocks, self._images(items, view, positions))
            return computed.permute(0, 2, 3, 1) if self._has_last_channels(item_shape) else computed

        outputs.fill(compute)
        return outputs

    def _stored_form(self) -> tuple[tuple[int, ...], torch.dtype]:
        """Return shape and dtype of one item's cached output; channels-last images stay so in the cache."""
        if self._form is None:
            size = self._preprocessing.image_size
            is_text = isinstance(self._preprocessing, TextPreprocessing)
            empty = torch.ones((1, size), dtype=torch.int64) if is_text else torch.zeros((1, 3, size, size))
            empty = empty.to(self._numerics.device)
            inputs = empty if is_text else self._numerics.lay_out_images(empty)
            shape = tuple(self._run(self._frozen[: self._depth], inputs).shape[1:])
            if self._has_last_channels(shape):
                shape = (*shape[1:], shape[0])
            self._form = shape, self._numerics.dtype
        return self._form

    def _has_last_channels(self, item_shape: tuple[int, ...]) -> bool:
        return self._numerics.channels_last and len(item_shape) == 3

    def _key(self, items: LabelledItems, view: View | None) -> dict[str, Any]:
        """Return everything that the outputs follow from."""
        return {
            "blocks": self._digests[: self._depth],
            "items": items.digest,
            "view": None if view is None else [view.seed, view.number],
            "preprocessing": self._preprocessing.model_dump(mode="json"),
            "numerics": self._numerics.fingerprint,
        }
