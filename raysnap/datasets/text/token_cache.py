"""Tokenise once: the tokens of a dataset's texts, kept as `pixel_cache` keeps the pixels of images."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from raysnap.atomic import write_all_at
from raysnap.datasets.dataset import Dataset, Item
from raysnap.datasets.decoding import DecodeJob, Outcome
from raysnap.datasets.pixel_cache import SlotCache
from raysnap.datasets.text.text_file import read_text
from raysnap.datasets.text.tokenizing import Tokenizing
from raysnap.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TEXTS_AT_ONCE = 256

LoadTokenizer = Callable[[str], bytes]
"""Takes a tokenizer's digest and returns the bytes of its `tokenizer.json`."""


@dataclass
class TokenCache(SlotCache):
    """The tokens of a list of texts, by one tokenizer; it is loaded only where a text is not in the cache yet."""

    kind: ClassVar[str] = "tokens"
    title: ClassVar[str] = "token cache"
    noun: ClassVar[str] = "text"
    unit: ClassVar[str] = "tokens"

    load_tokenizer: LoadTokenizer | None = None

    @classmethod
    def with_tokenizer(
        cls, items: Sequence[Item], dataset: Dataset, form: Tokenizing, load_tokenizer: LoadTokenizer
    ) -> TokenCache:
        """Open the cache of the items' dataset as `open` does, to be filled with a tokenizer."""
        cache = cls.open(items, dataset, form)
        cache.load_tokenizer = load_tokenizer
        return cache

    def read(self, indices: Sequence[int]) -> torch.Tensor:
        """Return the tokens of texts that `load` returned: int64 `[len(indices), max_length]`.

        Raises:
            DataError: a text is bad.
        """
        good = self.load(indices)
        if len(good) < len(indices):
            bad = next(i for i in indices if i in self.bad)
            raise DataError(f"{self.bad[bad]}; read only what load() returns")
        tokens = self._content[self._slots[good]].view(np.int32)
        return torch.from_numpy(tokens.astype(np.int64))

    def _fill(
        self, file: int, jobs: Sequence[DecodeJob], is_done: Callable[[DecodeJob], bool]
    ) -> Generator[tuple[DecodeJob, Outcome], None, None]:
        form = self.form
        assert isinstance(form, Tokenizing)
        assert self.load_tokenizer is not None, "a cache that isn't full yet is opened with a tokenizer"
        tokenise = Tokeniser(self.load_tokenizer(form.tokenizer), form.max_length, form.padding)
        for start in range(0, len(jobs), TEXTS_AT_ONCE):
            texts: dict[DecodeJob, str] = {}
            for job in jobs[start : start + TEXTS_AT_ONCE]:
                if is_done(job):
                    continue
                try:
                    texts[job] = read_text(Path(job.path))
                except DataError as error:
                    yield job, str(error)
            for job, tokens_T in zip(texts, tokenise(list(texts.values())).numpy(), strict=True):
                write_all_at(file, tokens_T.astype(np.int32).tobytes(), job.offset)
                yield job, (1, form.max_length)


class Tokeniser:
    """Turns texts into tokens as the tokenizer of some weights does.

    Args:
        content: the bytes of its `tokenizer.json`.
        max_length: how many tokens each text gets.
        padding: the token that fills up short texts, on the right.
    """

    def __init__(self, content: bytes, max_length: int, padding: int):
        self._tokenizer = parse_tokenizer(content, "tokenizer")
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length)
        self._max_length, self._padding = max_length, padding

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the tokens of texts, int64 `[len(texts), max_length]`."""
        tokens = torch.full((len(texts), self._max_length), self._padding, dtype=torch.int64)
        for row, encoding in zip(tokens, self._tokenizer.encode_batch(list(texts)), strict=True):
            ids = torch.tensor(encoding.ids or [self._padding], dtype=torch.int64)
            row[: len(ids)] = ids
        return tokens


def tokenizers_package(where: str) -> ModuleType:
    """Return Hugging Face's library of tokenizers.

    Raises:
        DataError: it is not installed.
    """
    try:
        import tokenizers
    except ImportError:
        raise DataError(f"{where}: expected the package tokenizers, found none; `pip install 'raysnap[hf]'`") from None
    return tokenizers


def parse_tokenizer(content: bytes, where: str) -> Tokenizer:
    """Return the tokenizer of a `tokenizer.json`.

    Raises:
        DataError: the package is missing, or it makes nothing of these bytes.
    """
    library = tokenizers_package(where)
    try:
        return library.Tokenizer.from_buffer(content)
    except Exception as error:  # noqa: BLE001 - the library raises nothing more special
        raise DataError(f"{where}: expected a tokenizer.json, found what tokenizers rejects: {error}") from None
