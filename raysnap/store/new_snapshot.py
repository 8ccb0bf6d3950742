"""What is recorded about a snapshot when it is stored, before its blocks have digests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raysnap.errors import StoreError
from raysnap.store.manifest import (
    MAX_MANIFEST_BYTES,
    BlockEntry,
    DatasetRecord,
    Manifest,
    oldest_format,
    snapshot_id,
)
from raysnap.store.preprocessing import AnyPreprocessing
from raysnap.system import package_version, utc_timestamp


@dataclass(frozen=True)
class Origin:
    """Where a snapshot comes from.

    Attributes:
        base: id of the snapshot that it was fine-tuned from.
        retrain_index: number of blocks retrained below the head.
        dataset: the dataset that it was trained on.
        train: the resolved training configuration; empty when unknown.
        trial: id of the trial that made it.
    """

    base: str | None = None
    retrain_index: int | None = None
    dataset: DatasetRecord | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    trial: str | None = None


@dataclass(frozen=True)
class NewSnapshot:
    """A snapshot to be stored: the model's interface, its metrics and its origin."""

    architecture: str
    num_classes: int
    preprocessing: AnyPreprocessing
    metrics: Mapping[str, float]
    origin: Origin

    def manifest(self, entries: tuple[BlockEntry, ...]) -> tuple[Manifest, bytes]:
        """Return the manifest of the snapshot with these blocks, and its file's bytes.

        Raises:
            StoreError: a value is out of range, or the manifest is too large to be read again.
        """
        origin = self.origin
        try:
            manifest = Manifest(
                format=oldest_format(self.architecture, self.preprocessing),
                id=snapshot_id(self.architecture, [(entry.name, entry.digest) for entry in entries]),
                architecture=self.architecture,
                num_classes=self.num_classes,
                blocks=entries,
                base=origin.base,
                retrain_index=origin.retrain_index,
                dataset=origin.dataset,
                preprocessing=self.preprocessing,
                metrics=dict(self.metrics),
                train=dict(origin.train),
                trial=origin.trial,
                created=utc_timestamp(),
                raysnap_version=package_version("raysnap") or "unknown",
            )
            content = manifest.to_bytes()
            if len(content) > MAX_MANIFEST_BYTES:
                raise ValueError(f"expected a manifest of at most {MAX_MANIFEST_BYTES} bytes, found {len(content)}")
        except ValueError as error:
            raise StoreError(f"{self.architecture} snapshot can't be stored: {_first_line(error)}") from None
        return manifest, content


def _first_line(error: ValueError) -> str:
    details = getattr(error, "errors", None)
    if details is None:
        return str(error)
    fault = details(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in fault['loc']) or 'manifest'}: {fault['msg']}"
