"""A run kept in a bucket: its rows, one object each, its documents, and the latest checkpoint of each unfinished trial.

The driver works in its run directory, which may be gone tomorrow. A row is written to the bucket before it is written
there, as an object of its own that is created under the next number or not at all: so the bucket's rows are the truth,
and of two drivers that continue one run, one finds its number taken and ends.
"""

from __future__ import annotations

import io
import logging
import mmap
import re
import shutil
import tarfile
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from raysnap.atomic import write_atomically
from raysnap.config.folders import BucketAddress
from raysnap.errors import ConfigError, RaysnapError, RunLocked
from raysnap.store.backends.bucket import Bucket
from raysnap.store.backends.client import Client
from raysnap.store.backends.place import MAX_OBJECT_BYTES

ROWS, CHECKPOINTS, RESULTS_NAME, CONFIG_NAME = "rows", "checkpoints", "results.jsonl", "config.yaml"
MAX_DOCUMENT_BYTES = 2**30
FETCHED = "fetched"  # the folder, beside Ray's, of a checkpoint that came from the bucket
_KEY = re.compile(r"[\w=+,@-][\w.=+,@-]*(/[\w=+,@-][\w.=+,@-]*)*")

logger = logging.getLogger(__name__)


class RunCopy:
    """A run in a bucket, as one driver or reader sees it."""

    def __init__(self, address: BucketAddress, place: Bucket | None = None):
        self.address = address
        self._place = place or Bucket(Client.connect(address))
        self._num_rows: int | None = None
        self._uploads = _Uploads(self._put_checkpoint)

    def is_begun(self) -> bool:
        """Return whether there is a run."""
        return self._place.exists(CONFIG_NAME)

    def fetch(self, folder: Path, *, checkpoints: bool = True) -> None:
        """Make a folder hold what the bucket does: documents, rows, and checkpoints to go on from.

        Raises:
            ConfigError: the folder has rows that the bucket lacks.
            StoreError: the bucket can't be read.
        """
        keys = [found.key for found in self._place.client.list_below("") if _KEY.fullmatch(found.key)]
        rows: dict[Path, list[str]] = {}
        for key in sorted(keys):
            path = PurePosixPath(key)
            if path.parent.name == ROWS:
                rows.setdefault(folder.joinpath(*path.parts[:-2]), []).append(key)
            elif CHECKPOINTS not in path.parts:
                _write(folder / key, self._place.read(key, MAX_DOCUMENT_BYTES))
            elif checkpoints and path.suffix == ".tar":
                self._fetch_checkpoint(folder, path)
        for parent, of_parent in rows.items():
            lines = list(self._place.map(lambda key: self._place.read(key, MAX_DOCUMENT_BYTES).strip(), of_parent))
            _check_known(parent / RESULTS_NAME, lines, self.address)
            _write(parent / RESULTS_NAME, b"".join(line + b"\n" for line in lines))

    def _fetch_checkpoint(self, folder: Path, key: PurePosixPath) -> None:
        """Unpack `…/checkpoints/STAGE/TRIAL.tar` to where the stage looks for the trial's latest checkpoint."""
        target = folder.joinpath(*key.parts[:-3]) / "ray" / key.parts[-2] / key.stem / FETCHED
        content, parts = self._place.read(str(key), MAX_OBJECT_BYTES), target.with_name(f"{FETCHED}.part")
        for path in (target, parts):
            shutil.rmtree(path, ignore_errors=True)
        try:
            with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                tar.extractall(parts, filter="data")
        except (tarfile.TarError, EOFError) as error:
            logger.warning("%s/%s: the checkpoint can't be used, its trial begins again: %s", self.address, key, error)
            return
        parts.rename(target)

    def put_document(self, folder: Path, name: str) -> None:
        """Keep a file of the run directory."""
        self._place.write(name, (folder / name).read_bytes())

    def add_row(self, line: str) -> None:
        """Keep a row under the next number.

        Raises:
            RunLocked: another driver has written one there.
        """
        if self._num_rows is None:
            names = self._place.names(ROWS)
            self._num_rows = max((int(name[:8]) for name in names if name[:8].isdigit()), default=0)
        key = f"{ROWS}/{self._num_rows + 1:08}.json"
        if not self._place.swap(key, None, f"{line}\n".encode()):
            raise RunLocked(
                f"storage_path {self.address}: another driver continues this run: it wrote {key}. This one ends; "
                "what it trained meanwhile is not recorded"
            )
        self._num_rows += 1

    def keep_checkpoint(self, stage: str, trial: str, path: Path | None) -> None:
        """Send a trial's checkpoint in the background, in the place of its last one; None deletes that."""
        self._uploads.add(f"{CHECKPOINTS}/{stage}/{trial}.tar", path)

    def _put_checkpoint(self, key: str, path: Path | None) -> None:
        if path is None:
            self._place.remove(key)
            return
        with tempfile.TemporaryFile(dir=path.parent) as file:
            with tarfile.open(fileobj=file, mode="w") as tar:
                tar.add(path, arcname=".")
            file.flush()
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                self._place.client.put(key, bytes(content))

    def close(self) -> None:
        """Wait until the checkpoints are sent."""
        self._uploads.close()


class _Uploads:
    """One thread that sends what is newest of each key, so that training doesn't wait for a slow line."""

    def __init__(self, put: Callable[[str, Path | None], None]):
        self._put = put
        self._waiting: dict[str, Path | None] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def add(self, key: str, path: Path | None) -> None:
        with self._changed:
            self._waiting[key] = path
            self._changed.notify_all()
            if self._thread is None:
                self._is_closed = False
                self._thread = threading.Thread(target=self._work, name="run-copy", daemon=True)
                self._thread.start()

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._is_closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                key = next(iter(self._waiting))
                path = self._waiting.pop(key)
            try:
                self._put(key, path)
            except FileNotFoundError:
                continue  # a newer checkpoint took its place, and is next
            except (RaysnapError, OSError) as error:
                logger.warning("%s is not kept, its trial would begin again on another machine: %s", key, error)


def keep_document(address: BucketAddress | None, folder: Path, name: str) -> None:
    """Keep a file of a run directory in the bucket of the run, if it has one."""
    if address is not None:
        RunCopy(address).put_document(folder, name)


def _write(path: Path, content: bytes) -> None:
    with suppress(OSError):
        if path.read_bytes() == content:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.decode())


def _check_known(path: Path, lines: list[bytes], address: BucketAddress) -> None:
    """Refuse to write over rows that the bucket doesn't have; a line that a crash cut is none."""
    with suppress(FileNotFoundError):
        own = [line for line in path.read_bytes().splitlines() if line.endswith(b"}")]
        unknown = set(own) - set(lines)
        if unknown:
            raise ConfigError(
                f"run_dir {path.parent}: has {len(unknown)} rows that {address} lacks; choose another run_dir="
            )
