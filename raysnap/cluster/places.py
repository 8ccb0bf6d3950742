"""What every node sees of a job's folders: asked before any work starts, and by each trial where it starts.

The driver leaves a probe of random content in each folder that the job writes; every node reads it and leaves an
answer, which the driver reads. Folders that are only read may be copies, so a sample of their files is compared. Nodes
that join later are not asked; a trial that starts there looks for a mark that the driver leaves in the run directory.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ray

from raysnap.cluster.nodes import on_node
from raysnap.config.folders import BucketAddress, StorePath
from raysnap.errors import ClusterError, ConfigError, DataError, StoreError

ANSWER_S = 20.0
APPEAR_S = 3.0  # within which a network file system shows what another node wrote
MAX_FOLDERS, MAX_FILES = 200, 5  # of a sample: folders at each depth, files in each
MAX_DEPTH = 4

MOUNT = "give a folder that all nodes mount at the same path"
LOCK = "mount it so that locks and renames reach all nodes, or give another folder"
COPY = "mount or copy it to the same path on every node"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobFolder:
    """A folder that a job uses.

    Attributes:
        key: what names it in messages: a key of the configuration or an option.
        use: `shared` if processes of several nodes write there, `locked` if they also lock files there; `read` if they
            only read, so that each node may have a copy.
    """

    key: str
    path: Path
    use: Literal["shared", "locked", "read"]


def store_places(key: str, store: StorePath, use: Literal["locked", "read"]) -> list[JobFolder]:
    """Return what each node must see of a store; nothing of one in a bucket, which is at one address for all."""
    if isinstance(store, BucketAddress):
        return []
    return [JobFolder(key, store / "snapshots" if use == "read" else store, use)]


@dataclass(frozen=True)
class _Probe:
    """What a node is to find in a place.

    Attributes:
        folder: where the probe is.
        name: of the probe, which holds `content`; None in a place that is only read.
        sample: what is in a place that is only read: sizes of files, numbers of folders.
    """

    place: JobFolder
    folder: Path
    name: str | None
    content: str
    sample: dict[str, int]


@dataclass(frozen=True)
class _Fault:
    """What is wrong with a place on a node, and what to do."""

    found: str
    advice: str


def check_places(places: Sequence[JobFolder]) -> None:
    """Check that every node of the Ray that is up sees the job's folders as this process does; leave nothing behind.

    Folders that are shared are made if needed. A node that doesn't answer within `ANSWER_S` is logged.

    Raises:
        ConfigError: a node sees another folder, or none; the message names the place and the node.
        ClusterError: a node can't run raysnap.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]] if ray.is_initialized() else []  # type: ignore[no-untyped-call]
    if len(nodes) < 2:
        return  # nobody else is there
    with ExitStack() as left:
        probes = [left.enter_context(_probe(place)) for place in places]
        token = secrets.token_hex(4)
        asked = {on_node(node, _look).remote(probes, f"{token}-{number}"): node for number, node in enumerate(nodes)}
        ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
        for answer in late:
            ray.cancel(answer, force=True)
            logger.warning(
                "%s has not said within %.0f s whether it sees the folders of the job", _name(asked[answer]), ANSWER_S
            )
        faults = [(asked[answer], *fault) for answer in ready for fault in _faults(answer, asked[answer], probes)]
        for place in places:
            _refuse(place, [(node, fault) for node, faulty, fault in faults if faulty == place])


def _refuse(place: JobFolder, faults: list[tuple[dict[str, Any], _Fault]]) -> None:
    if faults:
        node, fault = faults[0]
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ConfigError(f"{place.key} {place.path}: {_name(node)}{more} {fault.found}; {fault.advice}")


def _faults(answer: Any, node: dict[str, Any], probes: list[_Probe]) -> Iterator[tuple[JobFolder, _Fault]]:
    """Yield what is wrong on a node: what it found, and what of it this machine doesn't see."""
    try:
        answers = ray.get(answer)
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None) or error
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[-1]
        raise ClusterError(
            f"{_name(node)}: raysnap can't run there: {reason}; install the same version on every node"
        ) from None
    except ray.exceptions.RayError as error:
        logger.warning("%s left the cluster while it was asked: %s", _name(node), str(error).splitlines()[0])
        return
    for probe, found in zip(probes, answers, strict=True):
        if isinstance(found, _Fault):
            yield probe.place, found
        elif found is not None and not _appears(partial(_holds, probe.folder / found, found)):
            yield probe.place, _Fault("wrote there what this machine doesn't see", MOUNT)


# On this machine


@contextmanager
def _probe(place: JobFolder) -> Iterator[_Probe]:
    """Leave a probe in a place until the block ends; remove what was made for it if the block fails."""
    path = place.path.resolve()
    if place.use == "read":
        yield _Probe(place, path, None, "", sample(path))
        return
    folder = path / "tmp" if place.use == "locked" else path  # a store's own folder for files that come and go
    made = [folder, *(parent for parent in folder.parents if not parent.exists())] if not folder.exists() else []
    name, content = f".raysnap-probe-{secrets.token_hex(8)}", secrets.token_hex(32)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("x") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if place.use == "locked":
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield _Probe(place, folder, name, content, {})
            finally:
                for left in folder.glob(f"{name}*"):
                    left.unlink(missing_ok=True)
    except OSError as error:
        _remove_empty(made)
        raise ConfigError(f"{place.key} {place.path}: can't be written or locked: {error.strerror}; {MOUNT}") from None
    except BaseException:
        _remove_empty(made)
        raise


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):  # something else is there by now
        for folder in folders:
            folder.rmdir()


def sample(root: Path) -> dict[str, int]:
    """Return the sizes of a few files in a folder, and the number of folders in those that lead to them, by their path.

    Names that begin with a dot are left out. A folder of millions of files takes as long as one of thousands.
    """
    found: dict[str, int] = {}
    level = [root]
    for _ in range(MAX_DEPTH):
        below: list[Path] = []
        for folder in level[:: -(-len(level) // MAX_FOLDERS)]:
            folders, files = _listed(folder)
            found[f"{folder.relative_to(root)}{os.sep}"] = len(folders)
            found |= {str(file.relative_to(root)): file.stat().st_size for file in files}
            below += folders
        level = below
        if not level:
            break
    return found


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders in a folder, and a few of the files where it has no folders."""
    folders: list[Path] = []
    files: list[Path] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(Path(entry.path))
            elif len(files) < MAX_FILES:
                files.append(Path(entry.path))
            elif not folders:
                break  # a folder of images
    return sorted(folders), files


# On a node


def _look(probes: list[_Probe], answer_id: str) -> list[_Fault | str | None]:
    """Return for each place what is wrong with it here, else the name of the answer that was left there, if any."""
    return [_sampled(probe) if probe.name is None else _answered(probe, answer_id) for probe in probes]


def _answered(probe: _Probe, answer_id: str) -> _Fault | str:
    """Answer a probe by a file that holds its own name; it is written, renamed and, where that matters, locked."""
    path, name = probe.folder / str(probe.name), f"{probe.name}-{answer_id}"
    if not _appears(lambda: _holds(path, probe.content)):
        found = "sees another folder there" if probe.folder.is_dir() else "has no such folder"
        return _Fault(found, MOUNT)
    try:
        path.with_name(f"{name}.partial").write_text(name)
        path.with_name(f"{name}.partial").rename(path.with_name(name))
    except OSError as error:
        return _Fault(f"can't write and rename files there: {error.strerror}", LOCK)
    if probe.place.use == "locked":
        try:
            with path.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # as it should be: the driver holds it
        except OSError as error:
            return _Fault(f"can't lock files there: {error.strerror}", LOCK)
        else:
            return _Fault("can lock a file there that this machine has locked", LOCK)
    return name


def _sampled(probe: _Probe) -> _Fault | None:
    """Compare a sample with what is here."""
    if not probe.folder.is_dir():
        return _Fault("has no such folder", COPY)
    for name, expected in probe.sample.items():
        path = probe.folder / name
        try:
            found = len(_listed(path)[0]) if name.endswith(os.sep) else path.stat().st_size
        except OSError as error:
            return _Fault(f"can't read {name} in it: {error.strerror}", COPY)
        if found != expected:
            unit = "folders" if name.endswith(os.sep) else "bytes"
            return _Fault(f"has another one: {name} has {found} {unit}, not {expected}", COPY)
    return None


def _holds(path: Path, content: str) -> bool:
    try:
        return path.read_text() == content
    except (OSError, UnicodeDecodeError):
        return False


def _appears(is_there: Callable[[], bool]) -> bool:
    """Return whether something is there now or soon."""
    until_s = time.monotonic() + APPEAR_S
    while not is_there():
        if time.monotonic() >= until_s:
            return False
        time.sleep(0.1)
    return True


def _name(node: dict[str, Any]) -> str:
    return f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


# Trials, on nodes that may have joined since


@contextmanager
def marked(folder: Path) -> Iterator[Path]:
    """Leave a mark in a folder of the run directory until the block ends; by it trials know that they see the same one.

    Marks of drivers that died are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".driver-*"):
        left.unlink(missing_ok=True)
    mark = folder.resolve() / f".driver-{secrets.token_hex(8)}"
    mark.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def check_mark(mark: Path, dataset_dir: Path | None) -> None:
    """Check that this process, on whichever node it is, sees the run directory and the dataset of its trial.

    Raises:
        ClusterError: it doesn't; the message names the node.
    """
    if not _appears(mark.exists):
        found = f"{this_node()} doesn't see what the driver writes there"
        raise ClusterError(f"run_dir {mark.parents[1]}: {found}; {MOUNT}")
    if dataset_dir is not None and not dataset_dir.is_dir():
        raise ClusterError(f"dataset {dataset_dir}: {this_node()} has no such folder; {COPY}")


@contextmanager
def naming_node() -> Iterator[None]:
    """Name this node in what the block says is missing or wrong there.

    Raises:
        ClusterError: the block raised a DataError or a StoreError.
    """
    try:
        yield
    except (DataError, StoreError) as error:
        raise ClusterError(f"{this_node()}: {error}") from None


def this_node() -> str:
    """Return the name of the node that this process runs on."""
    address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return f"node {socket.gethostname()} ({address})"
