"""The errors that raysnap raises on purpose: each says where, what was expected, what was found and what to do.

An error holds only its message and plain values, so that it can be pickled between Ray processes.
"""

import errno

SYSTEM_LIMITS = {
    errno.EMFILE: "too many open files in this process; raise its limit (ulimit -n) and try again",
    errno.ENFILE: "too many open files on this machine; close some and try again",
    errno.ENOMEM: "out of memory; free some and try again",
    errno.ENOBUFS: "out of memory; free some and try again",
}
"""What to say of an OSError that any other file would meet, too: it says nothing of the file."""


def describe_os_error(error: OSError, hint: str) -> str:
    """Return what the system said and what to do: the hint, unless a limit of the system is the cause."""
    return SYSTEM_LIMITS.get(error.errno or 0) or f"{error.strerror or error}; {hint}"


class RaysnapError(Exception):
    """The base of all errors that raysnap raises on purpose; the message is one line for the user.

    >>> try:
    ...     raysnap.Store.open("no/such/store")
    ... except raysnap.RaysnapError as error:
    ...     print(type(error).__name__, error)
    StoreError no/such/store: expected a model store, found nothing there

    Attributes:
        exit_code: the exit code of a command that ends with this error.
    """

    exit_code = 2


class UsageError(RaysnapError):
    """An argument names something that does not exist, or arguments do not fit together.

    >>> raysnap.Store.open("store").summaries("acuracy > 0.8")
    Traceback (most recent call last):
    raysnap.errors.UsageError: where 'acuracy > 0.8': unknown field 'acuracy'; did you mean 'accuracy'?
    """


class ConfigError(RaysnapError):
    """A configuration file or a `key=value` override is wrong.

    >>> raysnap.load_config("configs/synthetic_snapshots.yaml", ["num_snapshot=3"])
    Traceback (most recent call last):
    raysnap.errors.ConfigError: configs/synthetic_snapshots.yaml: num_snapshot: unknown key; did you mean ...
    """


class RunLocked(RaysnapError):
    """Another process writes to the run directory: one job at a time may.

    >>> job = raysnap.SynthesizeConfig(
    ...     architectures=["mobilenet_v3_small"], num_snapshots=1, image_size=32, store="other", run_dir="runs/alone"
    ... )
    >>> try:
    ...     summary = raysnap.synthesize(job)
    ... except raysnap.RunLocked as error:
    ...     print(f"try again later: {error}")
    """


class DataError(RaysnapError):
    """A dataset is missing, malformed or too small for its use.

    >>> raysnap.open_dataset("shapes-shape-x", "data")
    Traceback (most recent call last):
    raysnap.errors.DataError: dataset 'shapes-shape-x': expected a folder in data or a known name, found neither; ...
    """


class ArchitectureError(RaysnapError):
    """An architecture is unknown or can't be split into blocks.

    >>> recipe = raysnap.SynthesizeConfig(architectures=["resnet19"], store="other", run_dir="runs/other")
    >>> raysnap.synthesize(recipe)
    Traceback (most recent call last):
    raysnap.errors.ArchitectureError: architecture 'resnet19': torchvision has no such classification model; did you ...
    """


class WeightsError(RaysnapError):
    """Weights are missing, unreadable or do not fit the architecture.

    >>> recipe = raysnap.SynthesizeConfig(base={"weights": "mine.pth"}, store="other", run_dir="runs/other")
    >>> raysnap.synthesize(recipe)
    Traceback (most recent call last):
    raysnap.errors.WeightsError: base.weights 'mine.pth': expected `random`, a weights name of resnet18 ...
    """


class StoreError(RaysnapError):
    """A store can't be opened or written.

    >>> raysnap.Store.open("data")
    Traceback (most recent call last):
    raysnap.errors.StoreError: data: expected a model store, found a folder without store.json
    """


class StoreUnreadable(StoreError):
    """The system refuses to read a file of a store: no permission, or a disk or server that fails. It may be intact.

    >>> try:
    ...     model = raysnap.Store.open("store").load_model("base")
    ... except raysnap.StoreUnreadable as error:
    ...     print(f"ask the owner of the store: {error}")
    """


class SnapshotNotFound(RaysnapError):
    """No snapshot of the store has this name or id.

    >>> raysnap.Store.open("store").manifest("bass")
    Traceback (most recent call last):
    raysnap.errors.SnapshotNotFound: store: no snapshot has the name or id 'bass'; did you mean 'base'?
    """


class StoreDamaged(RaysnapError):
    """Bytes in a store do not match their digest or format.

    >>> try:
    ...     model = raysnap.Store.open("store").load_model("base")
    ... except raysnap.StoreDamaged as error:
    ...     print(f"restore it from a backup: {error}")
    """

    exit_code = 3


class BlockDamaged(StoreDamaged):
    """A block is missing, or its bytes do not match its digest.

    >>> try:
    ...     raysnap.Store.open("store").read_block("0" * 64)
    ... except raysnap.BlockDamaged as error:
    ...     print(error.snapshots)
    ()

    Attributes:
        block: the block's digest.
        snapshots: ids of the snapshots that need the block; empty where the reader does not know them.
    """

    def __init__(self, message: str, block: str, snapshots: tuple[str, ...] = ()):
        super().__init__(message, block, snapshots)
        self.block = block
        self.snapshots = snapshots

    def __str__(self) -> str:
        return str(self.args[0])


class ClusterError(RaysnapError):
    """Ray can't be started or reached, or the cluster can't give what a job needs.

    >>> try:
    ...     result = raysnap.rank_snapshots("store", "shapes-shape-a", num_train=8, num_test=8)
    ... except raysnap.ClusterError as error:
    ...     print(f"search again with one worker: {error}")
    """

    exit_code = 4


class FrozenBlockChanged(RaysnapError):
    """A frozen block differs from the base's after a fine-tune."""

    exit_code = 1


class TrainingDiverged(RaysnapError):
    """The loss or the weights became NaN or infinite."""

    exit_code = 1


class OutOfMemory(RaysnapError):
    """A device or this machine has too little memory for a fine-tune."""

    exit_code = 1


def describe_failure(error: BaseException) -> str:
    """Return in one line, for a row, what went wrong: raysnap's own message, or any other error's type and message."""
    message = str(error) if isinstance(error, RaysnapError) else f"{type(error).__name__}: {error}"
    return " ".join(message.split())
