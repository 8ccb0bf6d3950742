"""Find the tokenizer that belongs to weights: `tokenizer.json` beside them, as transformers saves and reads it.

What transformers reads is not always what the file says: `tokenizer_config.json` beside it may have the last word, on
lower case for one. So where there is one, transformers is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysnap.canonical_json import parse_json
from raysnap.datasets.text.tokenizer import parse_tokenizer
from raysnap.errors import DataError

FILE_NAME = "tokenizer.json"
SETTINGS_NAME = "tokenizer_config.json"
USUAL_LENGTH = 512
MAX_BYTES = 256 * 2**20

_OTHERS = ("vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
_RIGHT = ("padding_side", "truncation_side")


@dataclass(frozen=True)
class TokenizerFile:
    """The bytes of a `tokenizer.json`, and how many tokens of a text the weights usually see."""

    content: bytes
    max_length: int


def find_tokenizer(path: Path) -> Path | None:
    """Return the `tokenizer.json` that is at a path or in the folder there; None where there is none.

    Raises:
        DataError: there is a tokenizer of another form.
    """
    if path.is_file():
        return path if path.suffix == ".json" else None
    found = path / FILE_NAME
    if found.is_file():
        return found
    other = next((name for name in _OTHERS if (path / name).is_file()), None)
    if other is not None:
        raise DataError(
            f"{path}: expected {FILE_NAME}, found {other}; `AutoTokenizer.from_pretrained(FOLDER).save_pretrained("
            "FOLDER)` of transformers makes it"
        )
    return None


def read_tokenizer(path: Path, *, padding: int, vocab_size: int, longest: int | None) -> TokenizerFile:
    """Read the tokenizer of some weights, and check that it is theirs.

    Args:
        path: a `tokenizer.json`; its settings are beside it, where there are any.
        padding: the weights' token that fills up short texts.
        vocab_size: how many tokens the weights know.
        longest: how many tokens of a text the weights take at most; None for any number.

    Raises:
        DataError: it can't be read, or isn't that of these weights.
    """
    settings = _settings(path.parent / SETTINGS_NAME) if path.name == FILE_NAME else {}
    content = _as_transformers_reads(path, _read(path)) if settings else _read(path)
    tokenizer = parse_tokenizer(content, str(path))
    last = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if last >= vocab_size:
        raise DataError(
            f"{path}: expected tokens below the weights' vocab_size {vocab_size}, found {last}; give the weights' own "
            "tokenizer"
        )
    for key in _RIGHT:
        if settings.get(key, "right") != "right":
            raise DataError(f"{path.parent / SETTINGS_NAME}: {key}: expected right, found {settings[key]!r:.40}")
    token = settings.get("pad_token")
    token = token.get("content") if isinstance(token, dict) else token
    if isinstance(token, str) and (found := tokenizer.token_to_id(token)) != padding:
        raise DataError(
            f"{path}: expected the weights' padding {padding} for {token!r}, found {found}; set pad_token_id in "
            "config.json"
        )
    length = settings.get("model_max_length")
    limits = [USUAL_LENGTH, *(limit for limit in (length, longest) if isinstance(limit, int) and limit > 0)]
    return TokenizerFile(content, min(limits))


def settings_of(content: bytes, *, padding: int, max_length: int) -> dict[str, Any]:
    """Return the settings with which transformers reads a `tokenizer.json` exactly as it is.

    Args:
        content: the bytes of the `tokenizer.json`.
        padding: the token that fills up short texts.
        max_length: how many tokens of a text the weights usually see.
    """
    token = parse_tokenizer(content, FILE_NAME).id_to_token(padding)
    known = {} if token is None else {"pad_token": token}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length} | known


def _as_transformers_reads(path: Path, content: bytes) -> bytes:
    """Return the tokenizer that transformers makes of a file and its settings; the file's bytes where it is that."""
    own = parse_tokenizer(content, str(path))
    try:
        from transformers import AutoTokenizer

        folder = str(path.parent)
        made = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        settled: str = made.backend_tokenizer.to_str()
    except Exception as error:  # noqa: BLE001 - a library of another library's files may raise anything
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: expected a tokenizer that transformers reads, found: {reason}") from None
    return content if settled == own.to_str() else settled.encode()


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from None
    if len(content) > MAX_BYTES:
        raise DataError(f"{path}: expected a tokenizer of at most {MAX_BYTES // 2**20} MiB, found a larger one")
    return content


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        settings = parse_json(_read(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON, found: {str(error)[:200]}") from None
    return settings if isinstance(settings, dict) else {}
