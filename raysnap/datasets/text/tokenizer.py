"""Turn texts into tokens by a `tokenizer.json`, with Hugging Face's tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from raysnap.errors import DataError

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer


class PaddedTokenizer:
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
        import torch  # checking a tokenizer does without

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
