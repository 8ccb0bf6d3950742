"""Tokenise once: the tokens of a dataset's texts, kept as `pixel_cache` keeps the pixels of images."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from raysnap.atomic import write_all_at
from raysnap.datasets.dataset import Dataset, Item
from raysnap.datasets.decoding import DecodeJob, Outcome
from raysnap.datasets.pixel_cache import SlotCache
from raysnap.datasets.text.text_file import read_text
from raysnap.datasets.text.tokenizer import PaddedTokenizer
from raysnap.datasets.text.tokenizing import Tokenizing
from raysnap.errors import DataError

if TYPE_CHECKING:
    import torch

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
        import torch  # opening a cache does without

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
        tokenize = PaddedTokenizer(self.load_tokenizer(form.tokenizer), form.max_length, form.padding)
        for start in range(0, len(jobs), TEXTS_AT_ONCE):
            texts: dict[DecodeJob, str] = {}
            for job in jobs[start : start + TEXTS_AT_ONCE]:
                if is_done(job):
                    continue
                try:
                    texts[job] = read_text(Path(job.path))
                except DataError as error:
                    yield job, str(error)
            for job, tokens_T in zip(texts, tokenize(list(texts.values())).numpy(), strict=True):
                write_all_at(file, tokens_T.astype(np.int32).tobytes(), job.offset)
                yield job, (1, form.max_length)
