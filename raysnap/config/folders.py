"""Folders as jobs and commands are given them: no addresses of other places, and none that Ray deletes with a job.

The one list of rules for the configuration, the command line and the Python API. A store alone may be in a bucket.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field, PlainValidator, ValidationInfo

from raysnap.errors import UsageError

FOLDERS_FOLLOW = "folders follow"  # of a validation's context: all folders are replaced before the job begins

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # `s3://bucket`, as a Path `s3:/bucket`; never `C:/folder`
_UPLOADED = f"{os.sep}runtime_resources{os.sep}working_dir_files{os.sep}"  # where Ray unpacks what a job uploads


_BUCKET = re.compile(r"s3://[A-Za-z0-9][A-Za-z0-9._-]{1,62}(/[A-Za-z0-9._=-]+)*")


class BucketAddress(str):
    """The address of a store in a bucket: `s3://bucket/prefix`."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.rpartition("/")[2]


StorePath: TypeAlias = Path | BucketAddress
"""Where a store is: a folder, or an address in a bucket."""


def store_path(path: Path | str) -> StorePath:
    """Return where a store is, `~` expanded.

    Raises:
        UsageError: it is an address of another kind than `s3://bucket/prefix`.
    """
    text = os.fspath(path)
    if not text.startswith(("s3:/", "S3:/")):
        fault = address_fault(path)
        if fault is not None:
            raise UsageError(f"{fault}, or an address such as s3://bucket/prefix")
        return local_path(path)
    address = re.sub("^[sS]3:/+", "s3://", text).rstrip("/")  # a Path has lost a slash
    if not _BUCKET.fullmatch(address) or ".." in address.split("/"):
        raise UsageError(
            f"{address[:200]}: expected a store's address such as s3://bucket/prefix, of letters, digits, '.', '_', "
            "'-' and '='"
        )
    return BucketAddress(address)


def absolute(path: StorePath) -> StorePath:
    """Return where a store is, for a process in another folder."""
    return path if isinstance(path, BucketAddress) else path.resolve()


def expanded(path: Path | str) -> str:
    """Return the path with a leading `~` or `~user` replaced by that home folder, as a shell would have done."""
    return os.path.expanduser(path)  # noqa: PTH111 - Path.expanduser() raises where there is no such user


def address_fault(path: Path | str) -> str | None:
    """Return why the path can't be used if it is an address such as `s3://bucket/folder`; None for any other."""
    text = os.fspath(path)
    if not _ADDRESS.match(text):
        return None
    shown = text if "://" in text else text.replace(":/", "://", 1)  # a Path has lost a slash
    return f"addresses such as {shown} are not supported yet; give a folder that all nodes mount"


def local_path(path: Path | str) -> Path:
    """Return the path as a Path, `~` expanded.

    Raises:
        UsageError: it is an address.
    """
    fault = address_fault(path)
    if fault is not None:
        raise UsageError(fault)
    return Path(expanded(path))


def folder_fault(path: Path | str) -> str | None:
    """Return why a job can't use the folder: an address, or a folder in Ray's copy of what `ray job submit` uploaded.

    Ray deletes that copy after the job.
    """
    fault = address_fault(path)
    if fault is None and _UPLOADED in os.path.abspath(path):  # noqa: PTH100 - Path.absolute() keeps `..`
        fault = (
            f"expected a folder that outlives the job, found {path} in Ray's temporary copy of the upload; give "
            "an absolute path that all nodes mount"
        )
    return fault


def refusing(fault_of: Callable[[Path | str], str | None]) -> Callable[[Any], Any]:
    """Return a validator that expands `~` in a path and raises ValueError with its fault; other values pass."""

    def check(value: Any) -> Any:
        if not isinstance(value, str | Path):
            return value
        path = expanded(value)
        fault = fault_of(path)
        if fault is not None:
            raise ValueError(fault)
        return type(value)(path) if path != os.fspath(value) else value

    return check


def are_replaced(info: ValidationInfo) -> bool:
    """Return whether the folders of the configuration under validation are replaced before its job begins."""
    return bool(info.context and info.context.get(FOLDERS_FOLLOW))


def _check_folder(value: Any, info: ValidationInfo) -> Any:
    return value if are_replaced(info) else refusing(folder_fault)(value)


Folder: TypeAlias = Annotated[Path, BeforeValidator(_check_folder), Field(validate_default=True)]
"""The folder of a job's records, store or data; validated where it is the default, too."""


def kept_store(path: Path | str) -> StorePath:
    """Return where a store is that outlives the command or job.

    Raises:
        UsageError: it can't be there.
    """
    found = store_path(path)
    fault = folder_fault(found) if isinstance(found, Path) else None
    if fault is not None:
        raise UsageError(fault)
    return found


def _check_store(value: Any, info: ValidationInfo) -> StorePath:
    if not isinstance(value, str | Path):
        raise ValueError(f"expected a path or an address, found {value!r}")
    try:
        return Path(value) if are_replaced(info) else kept_store(value)
    except UsageError as error:
        raise ValueError(str(error)) from None


def _any_store(value: Any) -> StorePath:
    if not isinstance(value, str | Path):
        raise ValueError(f"expected a path or an address, found {value!r}")
    try:
        return store_path(value)
    except UsageError as error:
        raise ValueError(str(error)) from None


StoreFolder: TypeAlias = Annotated[
    Path | BucketAddress, PlainValidator(_check_store, json_schema_input_type=Path), Field(validate_default=True)
]
"""The folder of a job's store, or its address in a bucket."""


def _check_storage(value: Any) -> BucketAddress | None:
    if value is None:
        return None
    try:
        found = store_path(value) if isinstance(value, str | Path) else None
    except UsageError as error:
        raise ValueError(str(error)) from None
    if not isinstance(found, BucketAddress):
        raise ValueError(f"expected an address such as s3://bucket/runs/mine, found {value!r}")
    return found


Storage: TypeAlias = Annotated[BucketAddress | None, PlainValidator(_check_storage, json_schema_input_type=str | None)]
"""The address of a bucket in which a run is kept as well, if anywhere."""

AnyFolder: TypeAlias = Annotated[Path, BeforeValidator(refusing(address_fault))]
"""A folder, wherever it is; only addresses are refused."""

AnyStore: TypeAlias = Annotated[Path | BucketAddress, PlainValidator(_any_store, json_schema_input_type=Path)]
"""A store, wherever it is; only addresses of other kinds are refused."""

NameOrFolder: TypeAlias = Annotated[str, Field(min_length=1), BeforeValidator(refusing(address_fault))]
"""A name, or the path of a folder or file."""
