"""Image folders that raysnap makes itself: they appear whole or not at all, with a `dataset.json` beside the splits.

The drawing of `shapes` and the converters of named datasets write through here; `raysnap.data` reads the result.
"""

from __future__ import annotations

import errno
import json
import logging
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
    """The folder being made: images go in one by one, digests and counts are kept on the way."""

    def __init__(self, partial_dir: Path):
        self._partial_dir = partial_dir
        self._digests: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._original_names: dict[str, str] = {}
        self._made_dirs: set[str] = set()

    def add_class(self, split: str, class_name: str) -> str:
        """The folder name that stands for `class_name`; `split/<that name>` exists afterwards.

        Raises:
            DataError: another class has the same folder name.
        """
        slug = class_slug(class_name)
        if self._original_names.setdefault(slug, class_name) != class_name:
            raise DataError(
                f"class {class_name!r}: expected a folder name of its own, found that {self._original_names[slug]!r} "
                f"is called {slug!r} too; rename one of them at the source"
            )
        folder = f"{split}/{slug}"
        if folder not in self._made_dirs:
            (self._partial_dir / folder).mkdir(parents=True, exist_ok=True)
            self._made_dirs.add(folder)
        return slug

    def add_image(self, split: str, class_name: str, file_name: str, content: bytes) -> None:
        """Write one image file into `split` and the class's folder."""
        relative_path = f"{split}/{self.add_class(split, class_name)}/{file_name}"
        with (self._partial_dir / relative_path).open("xb", buffering=0) as file:
            file.write(content)
        self._digests[relative_path] = blake3(content).hexdigest()
        self._counts[split] = self._counts.get(split, 0) + 1

    def finish(self, record: dict[str, Any]) -> None:
        """Write `dataset.json` (counts and digest are added to `record`), and `classes.json` where a name changed."""
        listing = "".join(f"{path}\0{digest}\n" for path, digest in sorted(self._digests.items()))
        full_record = record | {
            "digest": blake3(listing.encode()).hexdigest(),
            "counts": self._counts,
            "num_classes": len(self._original_names),
        }
        if any(slug != name for slug, name in self._original_names.items()):
            _write_json(self._partial_dir / CLASS_NAMES_NAME, dict(sorted(self._original_names.items())))
        _write_json(self._partial_dir / RECORD_NAME, full_record)


@contextmanager
def new_folder(final_dir: Path, record: dict[str, Any]) -> Iterator[FolderWriter]:
    """A writer whose folder becomes `final_dir` when the block ends well and vanishes when it doesn't.

    Where another process made `final_dir` in the meantime, that one stays and ours vanishes.

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
    """What `dataset.json` says; None where there is none.

    Raises:
        DataError: it is there and is not a JSON object.
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
    """A folder name for a class: what a file system or a shell would stumble over becomes `_`."""
    slug = re.sub(r'[\\/:*?"<>|\x00-\x1f\x7f]', "_", class_name).strip(" ")
    return re.sub(r"^\.+|\.+$", "_", slug) or "_"


def _publish(partial_dir: Path, final_dir: Path) -> None:
    try:
        partial_dir.rename(final_dir)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        log.info("%s was made by another process in the meantime", final_dir)


def _remove_stale(final_dir: Path) -> None:
    """Remove what a killed process left: partial folders of this dataset that nobody touched for a day."""
    for partial_dir in final_dir.parent.glob(f".{final_dir.name}.*.partial"):
        with suppress(FileNotFoundError):
            if time.time() - partial_dir.stat().st_mtime > STALE_PARTIAL_S:
                shutil.rmtree(partial_dir, ignore_errors=True)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
