"""What the store knows about a snapshot: the manifest, its canonical bytes and the id that they give it.

Pure names and data, no files: `objects` puts the bytes on disk, `store` decides when.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from raysnap.canonical_json import canonical_json, parse_json
from raysnap.errors import StoreDamaged, UsageError

FORMAT = 1
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_COUNT = 2**53

_DIGEST_PATTERN = "[0-9a-f]{64}"
_DIGEST = re.compile(_DIGEST_PATTERN)
_REF_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_CHECKSUM_MEMBER = re.compile(rb'"checksum":"([0-9a-f]{64})",')
_DIGEST_MEMBER = re.compile(rb'"digest":"([0-9a-f]{64})"')

Digest = Annotated[str, Field(pattern=f"^{_DIGEST_PATTERN}$")]
Text = Annotated[str, Field(min_length=1, max_length=4096)]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Channels = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class BlockEntry:
    """One block of a snapshot: its name in the architecture, the digest and the length of its bytes."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: Text
    digest: Digest
    num_bytes: Count


class Record(BaseModel):
    """A frozen part of a manifest that refuses unknown keys; not a `Config`, whose models take as long as a listing."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DatasetRecord(Record):
    """The dataset a snapshot was trained on."""

    name: Text
    digest: Text | None = Field(None, description="Digest of the dataset's files, where it is known.")
    classes: tuple[str, ...] = Field((), max_length=1_000_000, description="Class names in label order.")


class Preprocessing(Record):
    """What turns an image into the model's input; the default is torchvision's for ImageNet."""

    resize_size: int = Field(256, ge=1, le=65_536, description="Length of the shorter side after resizing, in pixels.")
    image_size: int = Field(224, ge=1, le=65_536, description="Edge of the centre crop, in pixels.")
    mean: Channels = Field((0.485, 0.456, 0.406), description="Per channel, of pixels in 0..1.")
    std: Channels = Field((0.229, 0.224, 0.225), description="Per channel, of pixels in 0..1.")
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    @classmethod
    def cropping(cls, image_size: int) -> Preprocessing:
        """Crops of `image_size` pixels, in torchvision's usual proportion of 224 to a shorter side of 256."""
        return cls(image_size=image_size, resize_size=round(image_size * 256 / 224))


class Manifest(Record):
    """One snapshot: its blocks in model order, where it comes from and how good it is."""

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
        return json.loads(canonical_json(train))

    @model_validator(mode="after")
    def _id_follows_from_the_blocks(self) -> Manifest:
        names = [block.name for block in self.blocks]
        if len(set(names)) != len(names):
            raise ValueError("a block's name stands twice")
        expected = snapshot_id(self.architecture, [(block.name, block.digest) for block in self.blocks])
        if self.id != expected:
            raise ValueError(f"id: expected {expected}, which the architecture and blocks give, found {self.id}")
        return self

    @property
    def num_bytes(self) -> int:
        """The bytes of all blocks: what a plain copy of the snapshot would take."""
        return sum(block.num_bytes for block in self.blocks)

    @property
    def accuracy(self) -> float | None:
        """The validation accuracy, the metric that snapshots are compared by."""
        return self.metrics.get("val_accuracy")

    def to_bytes(self) -> bytes:
        """The file's bytes: canonical JSON with a `checksum` over everything else."""
        document = self.model_dump(mode="json")
        checksum = blake3(canonical_json(document)).hexdigest()
        return canonical_json(document | {"checksum": checksum})


def snapshot_id(architecture: str, blocks: Iterable[tuple[str, str]]) -> str:
    """The id of the snapshot with these (block name, digest) pairs, in model order."""
    identity = {"architecture": architecture, "blocks": [[name, digest] for name, digest in blocks]}
    return blake3(canonical_json(identity)).hexdigest()


def is_digest(text: str) -> bool:
    """Whether `text` is written as a digest is: 64 lower-case hexadecimal characters."""
    return _DIGEST.fullmatch(text) is not None


def check_digest(text: str, what: str = "digest") -> str:
    """`text` itself, when it is safe to build a path from.

    Raises:
        UsageError: it is not 64 lower-case hexadecimal characters.
    """
    if not isinstance(text, str) or not is_digest(text):
        raise UsageError(f"{what}: expected 64 hexadecimal characters, found {str(text)[:80]!r}")
    return text


def is_ref_name(text: str) -> bool:
    """Whether `text` may name a snapshot; what looks like a whole id may not, it would hide that snapshot."""
    return _REF_NAME.fullmatch(text) is not None and not is_digest(text)


def check_ref_name(text: str) -> str:
    """`text` itself, when it may name a snapshot.

    Raises:
        UsageError: it has other characters, is too long or looks like an id.
    """
    if not isinstance(text, str) or not is_ref_name(text):
        raise UsageError(
            f"snapshot name {str(text)[:80]!r}: expected a letter or digit, then up to 199 letters, digits, '.', '_', "
            "'-', and not the form of an id"
        )
    return text


def parse_manifest(raw: bytes, where: str, expected_id: str | None = None) -> Manifest:
    """The manifest in a file's bytes, every byte of it checked.

    Args:
        raw: the file's bytes.
        where: the file's path, for messages.
        expected_id: the id in the file's name.

    Raises:
        StoreDamaged: the bytes are not exactly those that some manifest of this id writes.
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
        raise StoreDamaged(f"{where}: expected canonical JSON, found the same values written differently")
    if expected_id is not None and manifest.id != expected_id:
        raise StoreDamaged(f"{where}: expected the manifest of {expected_id}, found that of {manifest.id}")
    return manifest


def check_manifest_bytes(raw: bytes, where: str) -> None:
    """Checks the checksum without parsing: BLAKE3 of the bytes with the first `checksum` member cut out.

    Raises:
        StoreDamaged: it is missing or not that of the bytes.
    """
    member = _CHECKSUM_MEMBER.search(raw)
    if member is None:
        raise StoreDamaged(f"{where}: expected a manifest with a checksum, found {len(raw)} bytes without one")
    found = blake3(raw[: member.start()])
    found.update(memoryview(raw)[member.end() :])
    if found.hexdigest() != member[1].decode():
        raise StoreDamaged(f"{where}: damaged: its checksum says {member[1].decode()}, its bytes {found.hexdigest()}")


def block_digests(raw: bytes) -> list[bytes]:
    """At least the digests of all blocks in a manifest's bytes, as ASCII, without parsing them.

    A hundred times faster than parsing; quotes inside JSON strings are escaped, so no text can hide a block.
    """
    return _DIGEST_MEMBER.findall(raw)
