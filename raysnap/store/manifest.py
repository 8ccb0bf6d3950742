"""What the store records about a snapshot: the manifest, its canonical bytes and the id that follows from them.

Names and data only, no files: `files` puts the bytes on disk, `store` decides when.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias

from blake3 import blake3
from pydantic import (
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from raysnap.canonical_json import canonical_json, parse_json
from raysnap.errors import ArchitectureError, StoreDamaged, UsageError
from raysnap.models.architecture import MAX_CHARACTERS, TORCHVISION, parse
from raysnap.models.block_shape import HEAD
from raysnap.store.preprocessing import (
    MAX_COUNT,
    AnyPreprocessing,
    Count,
    Digest,
    Preprocessing,
    Record,
    TextPreprocessing,
    TokenizerEntry,
)

FORMAT_1: Final = 1
FORMAT_2: Final = 2
FORMATS: Final = (FORMAT_1, FORMAT_2)
"""All are read for ever. A manifest is of the oldest that can say it, a store of the newest of its manifests."""

MAX_MANIFEST_BYTES = 16 * 2**20
_DIGEST = re.compile("[0-9a-f]{64}")
_REF_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_CHECKSUM_MEMBER = re.compile(rb'"checksum":"([0-9a-f]{64})",')
_BUILDER = re.compile(r"[A-Za-z0-9_]{1,200}")
_ADDED = ("family", "configuration")
_DIGEST_MEMBER = re.compile(rb'"digest":"([0-9a-f]{64})"')

Text: TypeAlias = Annotated[str, Field(min_length=1, max_length=4096)]


@dataclass(frozen=True, slots=True)
class BlockEntry:
    """One block of a snapshot: its name in the architecture, its digest and its length in bytes."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: Text
    digest: Digest
    num_bytes: Count


class DatasetRecord(Record):
    """The dataset that a snapshot was trained on.

    >>> raysnap.DatasetRecord(name="pets", classes=("cat", "dog")).classes
    ('cat', 'dog')
    """

    name: Text
    digest: Text | None = Field(None, description="Digest of the dataset's files; null if unknown.")
    classes: tuple[str, ...] = Field((), max_length=1_000_000, description="Class names in label order.")


class Manifest(Record):
    """One snapshot: its blocks in model order, its origin and its metrics.

    >>> manifest = raysnap.Store.open("store").manifest("base")
    >>> manifest.architecture, len(manifest.blocks), manifest.preprocessing.image_size
    ('mobilenet_v3_small', 14, 32)
    """

    format: Literal[1, 2] = FORMAT_1
    id: Digest
    architecture: str = Field(min_length=1, max_length=MAX_CHARACTERS, description="Canonical: see `Architecture`.")
    num_classes: int = Field(ge=1, le=MAX_COUNT)
    blocks: tuple[BlockEntry, ...] = Field(min_length=1, max_length=100_000)
    base: Digest | None = None
    retrain_index: int | None = Field(None, ge=0, le=100_000)
    dataset: DatasetRecord | None = None
    preprocessing: AnyPreprocessing = Preprocessing()
    metrics: dict[str, float] = Field({}, max_length=10_000)
    train: dict[str, Any] = Field({}, description="The resolved training configuration; empty when unknown.")
    trial: Text | None = None
    created: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z$", description="ISO 8601, UTC.")
    raysnap_version: Text

    @field_validator("train")
    @classmethod
    def _train_is_plain_json(cls, train: dict[str, Any]) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads(canonical_json(train))
        return plain

    @model_validator(mode="wrap")
    @classmethod
    def _format_is_the_oldest(cls, document: Any, handler: ModelWrapValidatorHandler[Manifest]) -> Manifest:
        """Check what format 2 adds, and that the format is the oldest that can say it."""
        added = {}
        if isinstance(document, dict) and document.get("format") == FORMAT_2:
            added = {key: document[key] for key in _ADDED if key in document}
            document = {key: value for key, value in document.items() if key not in _ADDED}
        manifest = handler(document)
        expected = oldest_format(manifest.architecture, manifest.preprocessing)
        if manifest.format != expected:
            raise ValueError(f"format: expected {expected}, which can say all of it, found {manifest.format}")
        if added and canonical_json(added) != canonical_json(manifest._added()):
            raise ValueError(f"{' and '.join(added)}: expected those of the architecture {manifest.architecture:.80}")
        return manifest

    @model_validator(mode="after")
    def _id_follows_from_the_blocks(self) -> Manifest:
        names = [block.name for block in self.blocks]
        if len(set(names)) != len(names):
            raise ValueError("two blocks have the same name")
        expected = snapshot_id(self.architecture, [(block.name, block.digest) for block in self.blocks])
        if self.id != expected:
            raise ValueError(f"id: expected {expected}, computed from architecture and blocks, found {self.id}")
        return self

    @property
    def objects(self) -> tuple[BlockEntry | TokenizerEntry, ...]:
        """All that has to be in the store before the snapshot is: its blocks, and the tokenizer of a model of texts."""
        how = self.preprocessing
        return (*self.blocks, how.tokenizer) if isinstance(how, TextPreprocessing) else self.blocks

    @property
    def num_bytes(self) -> int:
        """The number of bytes of all blocks, which is what a plain copy of the snapshot would take."""
        return sum(block.num_bytes for block in self.blocks)

    @property
    def accuracy(self) -> float | None:
        """The validation accuracy, the metric that snapshots are compared by."""
        return self.metrics.get("val_accuracy")

    @property
    def body(self) -> str:
        """A digest of all but the head: snapshots with equal ones turn equal items into equal features."""
        below = [[block.name, block.digest] for block in self.blocks if block.name != HEAD]
        identity = [self.architecture, self.preprocessing.model_dump(mode="json"), below]
        return blake3(canonical_json(identity)).hexdigest(length=16)

    def _added(self) -> dict[str, Any]:
        """Return the members that format 2 adds: the parts of the architecture's name."""
        architecture = parse(self.architecture)
        return {"family": architecture.family, "configuration": architecture.options}

    @model_serializer(mode="wrap")
    def _as_its_format_says(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = handler(self)
        if self.format == FORMAT_1:
            return document
        return document | self._added() | {"preprocessing": document["preprocessing"] | self.preprocessing.wider}

    def to_bytes(self) -> bytes:
        """Return the file's bytes: canonical JSON with a `checksum` over everything else."""
        document = self.model_dump(mode="json")
        checksum = blake3(canonical_json(document)).hexdigest()
        return canonical_json(document | {"checksum": checksum})


def snapshot_id(architecture: str, blocks: Iterable[tuple[str, str]]) -> str:
    """Return the id of the snapshot with these (block name, digest) pairs, in model order."""
    identity = {"architecture": architecture, "blocks": [[name, digest] for name, digest in blocks]}
    return blake3(canonical_json(identity)).hexdigest()


def oldest_format(architecture: str, preprocessing: AnyPreprocessing) -> Literal[1, 2]:
    """Return the oldest format whose manifests can say this; older raysnaps then read it.

    Raises:
        ValueError: the architecture's name is not canonical.
    """
    try:
        parsed = parse(architecture)
    except ArchitectureError as error:
        raise ValueError(str(error)) from None
    if str(parsed) != architecture:
        raise ValueError(f"architecture: expected {str(parsed)[:200]!r}, found {architecture[:200]!r}")
    if parsed.family == TORCHVISION and not _BUILDER.fullmatch(parsed.name):
        raise ValueError(f"architecture: expected letters, digits and '_', found {parsed.name!r}")
    return FORMAT_1 if parsed.family == TORCHVISION and preprocessing.is_narrow else FORMAT_2


def is_digest(text: str) -> bool:
    """Return whether `text` has the form of a digest: 64 lower-case hexadecimal characters."""
    return _DIGEST.fullmatch(text) is not None


def check_digest(text: str, what: str = "digest") -> str:
    """Return `text` if it is a digest, and so safe to build a path from.

    Raises:
        UsageError: it is not 64 lower-case hexadecimal characters.
    """
    if not isinstance(text, str) or not is_digest(text):
        raise UsageError(f"{what}: expected 64 hexadecimal characters, found {str(text)[:80]!r}")
    return text


def is_ref_name(text: str) -> bool:
    """Return whether `text` may name a snapshot; the form of an id is not allowed, as it would hide that snapshot."""
    return _REF_NAME.fullmatch(text) is not None and not is_digest(text)


def check_ref_name(text: str) -> str:
    """Return `text` if it may name a snapshot.

    Raises:
        UsageError: it has other characters, is too long or has the form of an id.
    """
    if not isinstance(text, str) or not is_ref_name(text):
        raise UsageError(
            f"snapshot name {str(text)[:80]!r}: expected a letter or digit, then up to 199 letters, digits, '.', '_', "
            "'-'; 64 hexadecimal characters are an id, not a name"
        )
    return text


def parse_manifest(raw: bytes, where: str, expected_id: str | None = None) -> Manifest:
    """Parse a manifest from a file's bytes, checking every byte.

    Args:
        raw: the file's bytes.
        where: the file's path, for messages.
        expected_id: the id in the file's name.

    Raises:
        StoreDamaged: the bytes are not exactly those of a manifest with this id.
    """
    check_manifest_bytes(raw, where)
    try:
        document = parse_json(raw)
        document.pop("checksum")
        manifest = Manifest.model_validate(document)
        is_canonical = manifest.to_bytes() == raw
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(str(part) for part in fault["loc"])
        raise StoreDamaged(f"{where}: not a manifest: {path or 'whole'}: {fault['msg']}") from None
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise StoreDamaged(f"{where}: not a manifest: {error or type(error).__name__}") from None
    if not is_canonical:
        raise StoreDamaged(f"{where}: expected canonical JSON, found the same values formatted differently")
    if expected_id is not None and manifest.id != expected_id:
        raise StoreDamaged(f"{where}: expected the manifest of {expected_id}, found that of {manifest.id}")
    return manifest


def check_manifest_bytes(raw: bytes, where: str) -> None:
    """Verify the checksum without parsing: BLAKE3 of the bytes with the first `checksum` member cut out.

    Raises:
        StoreDamaged: it is missing or does not match the bytes.
    """
    member = _CHECKSUM_MEMBER.search(raw)
    if member is None:
        raise StoreDamaged(f"{where}: expected a manifest with a checksum, found {len(raw)} bytes without one")
    found = blake3(raw[: member.start()])
    found.update(memoryview(raw)[member.end() :])
    if found.hexdigest() != member[1].decode():
        raise StoreDamaged(
            f"{where}: damaged: expected the checksum {member[1].decode()}, found {found.hexdigest()} in its bytes"
        )


def block_digests(raw: bytes) -> list[bytes]:
    """Return the digests of at least all blocks in a manifest's bytes, as ASCII, without parsing them.

    This is a hundred times faster than parsing. Quotes inside JSON strings are escaped, so no text can hide a block.
    """
    return _DIGEST_MEMBER.findall(raw)
