"""Open the cache of what models see of items, and read from it; images and texts have one each.

Opening and filling a cache does without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from raysnap.datasets.dataset import Dataset, Item
from raysnap.datasets.pixel_cache import PixelCache
from raysnap.datasets.text.token_cache import LoadTokenizer, TokenCache
from raysnap.store.preprocessing import AnyPreprocessing, Preprocessing, TextPreprocessing

if TYPE_CHECKING:
    from torch import Tensor

ItemCache: TypeAlias = PixelCache | TokenCache


def open_cache(
    items: Sequence[Item], dataset: Dataset, preprocessing: AnyPreprocessing, load_tokenizer: LoadTokenizer
) -> ItemCache:
    """Open the cache of what models with this preprocessing see of a dataset's items.

    Raises:
        DataError: no place for the cache can be written.
    """
    if isinstance(preprocessing, TextPreprocessing):
        return TokenCache.with_tokenizer(items, dataset, preprocessing.resizing, load_tokenizer)
    return PixelCache.open(items, dataset, preprocessing.resizing)


def read_items(
    cache: ItemCache, indices: Sequence[int], preprocessing: AnyPreprocessing, edge: int | None = None
) -> Tensor:
    """Return items that the cache holds: uint8 `[n, 3, S, S]` of images, int64 `[n, T]` of texts.

    Args:
        edge: of the images' centre crops; None is that of the preprocessing.
    """
    if isinstance(cache, TokenCache):
        return cache.read(indices)
    assert isinstance(preprocessing, Preprocessing), "images have a preprocessing of images"
    return cache.read(indices, edge or preprocessing.image_size, preprocessing.crop_rounding)
