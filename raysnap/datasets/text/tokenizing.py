"""How a text becomes tokens: by one tokenizer, cut or filled up to one length."""

from __future__ import annotations

from typing import NamedTuple

TOKEN_BYTES = 4  # int32


class Tokenizing(NamedTuple):
    """The tokens that are kept of a text: the form of a `TokenCache`, as `Resizing` is that of a `PixelCache`.

    Attributes:
        tokenizer: the digest of the tokenizer.
        max_length: how many tokens a text has: longer ones are cut, shorter ones filled up.
        padding: the token that fills up short texts.
    """

    tokenizer: str
    max_length: int
    padding: int = 0

    @property
    def slot_bytes(self) -> int:
        """The bytes of a text's tokens."""
        return TOKEN_BYTES * self.max_length

    @property
    def kept_size(self) -> int:
        """How many tokens are kept of a text."""
        return self.max_length

    @property
    def label(self) -> str:
        """What names of files begin with; not the beginning of another label."""
        return f"{self.tokenizer[:16]}-{self.max_length}in{self.padding}"

    @property
    def text(self) -> str:
        """How the tokens came to be, in words."""
        return f"{self.tokenizer} {self.max_length} {self.padding}"
