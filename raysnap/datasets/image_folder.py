"""Image folders that raysnap writes: they appear whole or not at all, with a `dataset.json` beside the splits.

The `shapes` datasets and the converters of published ones write through here; `datasets.dataset` reads the result.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from blake3 import blake3

from raysnap.errors import DataError

RECORD_NAME = "dataset.json"
CLASS_NAMES_NAME = "classes.json"
STALE_PARTIAL_S = 24 * 3600

log = logging.getLogger(__name__)


class FolderWriter:
    """A folder being written: takes images one by one and keeps their digests and counts.

    Attributes:
        partial_dir: where the folder is until it is complete.
        details: further facts for `dataset.json` that are known only once the images are in.
    """

    def __init__(self, partial_dir: Path):
        self.partial_dir = partial_dir
        self.details: dict[str, Any] = {}
        self._digests: dict[str, str] = {}
        self._counts: dict[str, dict[str, int]] = {}
        self._original_names: dict[str, str] = {}
        self._made_dirs: set[str] = set()

    def add_class(self, split: str, class_name: str, original: str | None = None) -> str:
        """Create the folder of a class in a split if needed; return its name.

        `original` is what the source calls the class, where that differs; `classes.json` keeps it.

        Raises:
            DataError: another class has the same folder name.
        """
        slug = class_slug(class_name)
        original = class_name if original is None else original
        if self._original_names.setdefault(slug, original) != original:
            raise DataError(
                f"class {original!r}: expected a unique folder name, found that {self._original_names[slug]!r} "
                f"is called {slug!r} too; rename one of them at the source"
            )
        folder = f"{split}/{slug}"
        if folder not in self._made_dirs:
            (self.partial_dir / folder).mkdir(parents=True, exist_ok=True)
            self._made_dirs.add(folder)
        return slug

    def add_image(
        self,
        split: str,
        class_name: str,
        file_name: str,
        content: bytes,
        original: str | None = None,
        link_to: Path | None = None,
    ) -> None:
        """Write one image file into the folder of its split and class.

        `link_to` is an existing file with that content, which is hard-linked instead of copied where possible.
        """
        slug = self.add_class(split, class_name, original)
        relative_path = f"{split}/{slug}/{file_name}"
        path = self.partial_dir / relative_path
        if link_to is None or not _is_linked(link_to, path):
            with path.open("xb", buffering=0) as file:
                file.write(content)
        self._digests[relative_path] = blake3(content).hexdigest()
        by_class = self._counts.setdefault(split, {})
        by_class[slug] = by_class.get(slug, 0) + 1

    def finish(self, record: dict[str, Any]) -> None:
        """Write `dataset.json`, which is `record` with counts and digest, and `classes.json` where a name changed."""
        listing = "".join(f"{path}\0{digest}\n" for path, digest in sorted(self._digests.items()))
        full_record = record | {
            "digest": blake3(listing.encode(errors="surrogateescape")).hexdigest(),
            "counts": {split: sum(by_class.values()) for split, by_class in self._counts.items()},
            "num_classes": len(self._original_names),
            **self.details,
        }
        if any(slug != name for slug, name in self._original_names.items()):
            _write_json(self.partial_dir / CLASS_NAMES_NAME, dict(sorted(self._original_names.items())))
        _write_json(self.partial_dir / RECORD_NAME, full_record)

    def counts_per_class(self) -> dict[str, dict[str, int]]:
        """Return the number of images so far by split and class folder, sorted by class."""
        return {split: dict(sorted(by_class.items())) for split, by_class in self._counts.items()}


@contextmanager
def new_folder(final_dir: Path, record: dict[str, Any]) -> Iterator[FolderWriter]:
    """Open a writer whose folder becomes `final_dir` when the block ends, and is removed when the block fails.

    Where another process creates `final_dir` meanwhile, that one stays and ours is removed.

    Raises:
        DataError: the folder can't be written.
    """
    partial_dir = final_dir.with_name(f".{final_dir.name}.{secrets.token_hex(6)}.partial")
    try:
        final_dir.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(final_dir)
        partial_dir.mkdir()
        writer = FolderWriter(partial_dir)
        yield writer
        writer.finish(record)
        _publish(partial_dir, final_dir)
    except OSError as error:
        raise DataError(
            f"{final_dir}: can't be written: {error.strerror or error}; free space there or choose another data_dir"
        ) from error
    finally:
        shutil.rmtree(partial_dir, ignore_errors=True)


def read_record(dataset_dir: Path) -> dict[str, Any] | None:
    """Return the contents of `dataset.json`; None where there is none.

    Raises:
        DataError: it is not a JSON object.
    """
    path = dataset_dir / RECORD_NAME
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected a JSON object, found {error}; delete the file or the dataset") from None
    if not isinstance(record, dict):
        kind = type(record).__name__
        raise DataError(f"{path}: expected a JSON object, found {kind}; delete the file or the dataset")
    return record


def class_slug(class_name: str) -> str:
    """Return a folder name for a class: characters that trouble file systems or shells become `_`."""
    slug = re.sub(r'[\\/:*?"<>|\x00-\x1f\x7f]', "_", class_name).strip(" ")
    return re.sub(r"^\.+|\.+$", "_", slug) or "_"


def _is_linked(existing: Path, path: Path) -> bool:
    """Hard-link `path` to the file `existing`; return False where the file system can't."""
    try:
        os.link(existing.resolve(), path)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def _publish(partial_dir: Path, final_dir: Path) -> None:
    try:
        partial_dir.rename(final_dir)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        log.info("%s was created by another process meanwhile", final_dir)


def _remove_stale(final_dir: Path) -> None:
    """Remove what a killed process left: partial folders of this dataset that have not changed for a day."""
    for partial_dir in final_dir.parent.glob(f".{final_dir.name}.*.partial"):
        with suppress(FileNotFoundError):
            if time.time() - partial_dir.stat().st_mtime > STALE_PARTIAL_S:
                shutil.rmtree(partial_dir, ignore_errors=True)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    path.write_bytes(text.encode(errors="backslashreplace"))  # names that are no text become JSON's own escapes
