"""The errors that raysnap raises on purpose: each says where, what was expected, what was found and what to do.

Every error holds nothing but its message and plain values, so that it survives pickling between Ray processes.
"""


class RaysnapError(Exception):
    """An error whose message is meant for the user; `exit_code` is the command's exit code."""

    exit_code = 2


class UsageError(RaysnapError):
    """A command line or a call asks for something that does not exist, or for options that exclude each other."""


class ConfigError(RaysnapError):
    """A configuration file or a `key=value` override is wrong."""


class DataError(RaysnapError):
    """A dataset is missing, malformed or too small for the job."""


class ArchitectureError(RaysnapError):
    """An architecture is unknown or can't be split into blocks."""


class WeightsError(RaysnapError):
    """Weights are missing, unreadable or do not fit the architecture."""


class StoreError(RaysnapError):
    """A store can't be opened, read or written."""


class SnapshotNotFound(RaysnapError):
    """No snapshot of the store has this id or name."""


class StoreDamaged(RaysnapError):
    """Bytes in a store are not what their digest or format promises."""

    exit_code = 3


class BlockDamaged(StoreDamaged):
    """A block is missing, or its bytes do not match its digest.

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


class FrozenBlockChanged(RaysnapError):
    """A block that should have stayed frozen differs from the base's after a fine-tune."""

    exit_code = 1


class TrainingDiverged(RaysnapError):
    """The loss or the weights became NaN or infinite."""

    exit_code = 1


class OutOfMemory(RaysnapError):
    """A device or this machine has too little memory for a fine-tune."""

    exit_code = 1


def describe_failure(error: BaseException) -> str:
    """Describe an error in one line, for a row: raysnap's own message, or the type and message of any other error."""
    message = str(error) if isinstance(error, RaysnapError) else f"{type(error).__name__}: {error}"
    return " ".join(message.split())
