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
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from raysnap.canonical_json import canonical_json, parse_json
from raysnap.errors import StoreDamaged, UsageError
from raysnap.models.block_shape import HEAD

FORMAT: Final = 1
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_COUNT = 2**53

_DIGEST_PATTERN = "[0-9a-f]{64}"
_DIGEST = re.compile(_DIGEST_PATTERN)
_REF_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_CHECKSUM_MEMBER = re.compile(rb'"checksum":"([0-9a-f]{64})",')
_DIGEST_MEMBER = re.compile(rb'"digest":"([0-9a-f]{64})"')

Digest: TypeAlias = Annotated[str, Field(pattern=f"^{_DIGEST_PATTERN}$")]
Text: TypeAlias = Annotated[str, Field(min_length=1, max_length=4096)]
Count: TypeAlias = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Channels: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class BlockEntry:
    """One block of a snapshot: its name in the architecture, its digest and its length in bytes."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: Text
    digest: Digest
    num_bytes: Count


class Record(BaseModel):
    """A frozen part of a manifest that rejects unknown keys; a `Config` takes too long to import."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DatasetRecord(Record):
    """The dataset that a snapshot was trained on.

    >>> raysnap.DatasetRecord(name="pets", classes=("cat", "dog")).classes
    ('cat', 'dog')
    """

    name: Text
    digest: Text | None = Field(None, description="Digest of the dataset's files; null if unknown.")
    classes: tuple[str, ...] = Field((), max_length=1_000_000, description="Class names in label order.")


class Preprocessing(Record):
    """How an image becomes the model's input; the default is torchvision's for ImageNet.

    >>> raysnap.Preprocessing.cropping(64)
    Preprocessing(resize_size=73, image_size=64, mean=(0.485, 0.456, 0.406), ...)
    """

    resize_size: int = Field(256, ge=1, le=65_536, description="Length of the shorter side after resizing, in pixels.")
    image_size: int = Field(224, ge=1, le=65_536, description="Edge of the centre crop, in pixels.")
    mean: Channels = Field((0.485, 0.456, 0.406), description="Mean per channel, of pixels in 0..1.")
    std: Channels = Field((0.229, 0.224, 0.225), description="Standard deviation per channel, of pixels in 0..1.")
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    @classmethod
    def cropping(cls, image_size: int) -> Preprocessing:
        """Return the preprocessing with crops of `image_size` pixels, in torchvision's usual ratio of 224 to 256."""
        return cls(image_size=image_size, resize_size=round(image_size * 256 / 224))


class Manifest(Record):
    """One snapshot: its blocks in model order, its origin and its metrics.

    >>> manifest = raysnap.Store.open("store").manifest("base")
    >>> manifest.architecture, len(manifest.blocks), manifest.preprocessing.image_size
    ('mobilenet_v3_small', 14, 32)
    """

    format: Literal[1] = FORMAT
    id: Digest
    architecture: str = Field(pattern=r"^[A-Za-z0-9_]{1,200}$")
    num_classes: int = Field(ge=1, le=MAX_COUNT)
    blocks: tuple[BlockEntry, ...] = Field(min_length=1, max_length=100_000)
    base: Digest | None = None
    retrain_index: int | None = Field(None, ge=0, le=100_000)
    dataset: DatasetRecord | None = None
    preprocessing: Preprocessing = Preprocessing()
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
    def num_bytes(self) -> int:
        """The number of bytes of all blocks, which is what a plain copy of the snapshot would take."""
        return sum(block.num_bytes for block in self.blocks)

    @property
    def accuracy(self) -> float | None:
        """The validation accuracy, the metric that snapshots are compared by."""
        return self.metrics.get("val_accuracy")

    @property
    def body(self) -> str:
        """A digest of all but the head: snapshots with equal ones turn equal images into equal features."""
        below = [[block.name, block.digest] for block in self.blocks if block.name != HEAD]
        identity = [self.architecture, self.preprocessing.model_dump(mode="json"), below]
        return blake3(canonical_json(identity)).hexdigest(length=16)

    def to_bytes(self) -> bytes:
        """Return the file's bytes: canonical JSON with a `checksum` over everything else."""
        document = self.model_dump(mode="json")
        checksum = blake3(canonical_json(document)).hexdigest()
        return canonical_json(document | {"checksum": checksum})


def snapshot_id(architecture: str, blocks: Iterable[tuple[str, str]]) -> str:
    """Return the id of the snapshot with these (block name, digest) pairs, in model order."""
    identity = {"architecture": architecture, "blocks": [[name, digest] for name, digest in blocks]}
    return blake3(canonical_json(identity)).hexdigest()


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
        raise StoreDamaged(f"{where}: not a manifest of format {FORMAT}: {path or 'whole'}: {fault['msg']}") from None
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
