"""What a bucket's owner has ordered that would destroy a store, or make it cost more: lifecycle rules, versions, locks.

Read by boto3, which signs these requests; obstore has no call for them. Where it isn't installed, or the credentials or
the server don't allow it, nothing is known.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raysnap.config.folders import BucketAddress
from raysnap.errors import StoreError
from raysnap.store.backends.place import TMP

ANSWER_S = 10
FROZEN = ("GLACIER", "DEEP_ARCHIVE")
"""Classes whose objects must be restored before they can be read; GLACIER_IR answers at once."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BucketRules:
    """What was found; None is what could not be asked for.

    Attributes:
        destroying: lifecycle rules that would expire or freeze objects of the store, each in words.
        aborts_uploads: whether a rule aborts unfinished uploads there.
        versioning: `on`, `suspended` or `off`.
        lock: the mode in which new objects are locked, such as `COMPLIANCE`, `on request`, or `off`.
    """

    destroying: tuple[str, ...] | None = None
    aborts_uploads: bool | None = None
    versioning: str | None = None
    lock: str | None = None


def read_rules(address: BucketAddress) -> BucketRules:
    """Return the rules of the bucket, as far as they can be read."""
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    try:
        client = _connect()
    except Exception as error:  # noqa: BLE001 - boto3's errors have no common class, and nothing depends on this
        logger.info("the rules of %s can't be read: %s", address, type(error).__name__)
        return BucketRules()
    rules = _asked(lambda: client.get_bucket_lifecycle_configuration(Bucket=bucket), "NoSuchLifecycleConfiguration")
    versioning = _asked(lambda: client.get_bucket_versioning(Bucket=bucket), "")
    lock = _asked(lambda: client.get_object_lock_configuration(Bucket=bucket), "ObjectLockConfigurationNotFoundError")
    below = f"{prefix}/" if prefix else ""
    active = None if rules is None else [one for one in rules.get("Rules", []) if one.get("Status") == "Enabled"]
    versions = {"Enabled": "on", "Suspended": "suspended"}
    return BucketRules(
        None if active is None else tuple(said for one in active if (said := _destroys(one, below))),
        None if active is None else any("AbortIncompleteMultipartUpload" in one for one in active),
        None if versioning is None else versions.get(str(versioning.get("Status")), "off"),
        None if lock is None else _lock_of(lock),
    )


def check_rules(address: BucketAddress) -> None:
    """Refuse a bucket with a lifecycle rule that would destroy a store there, where one is seen.

    Raises:
        StoreError: there is one.
    """
    destroying = read_rules(address).destroying
    if destroying:
        raise StoreError(
            f"{address}: expected a bucket that keeps what is written, found {'; '.join(destroying)}. A store there "
            "would lose blocks, which are needed for as long as their snapshots: take the prefix out of the rule"
        )


def _connect() -> Any:
    for name in ("boto3", "botocore"):
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(logging.WARNING)  # its debug messages hold signatures
    import boto3
    from botocore.config import Config

    limits = Config(connect_timeout=ANSWER_S, read_timeout=ANSWER_S, retries={"total_max_attempts": 2})
    return boto3.client("s3", region_name=os.environ.get("AWS_REGION"), config=limits)


def _asked(ask: Callable[[], dict[str, Any]], none_code: str) -> dict[str, Any] | None:
    """Return the answer, an empty one where there is no such configuration, None where it can't be had."""
    try:
        return ask()
    except Exception as error:  # noqa: BLE001 - as above; what it says may name credentials
        code = getattr(error, "response", {}).get("Error", {}).get("Code", "")
        if code and code == none_code:
            return {}
        logger.info("a rule of the bucket can't be read: %s", code or type(error).__name__)
        return None


def _destroys(rule: dict[str, Any], below: str) -> str | None:
    """Return in words what an active rule would do to objects below a prefix; None where it does no harm."""
    chosen = rule.get("Filter", {})
    both = chosen.get("And", chosen)
    if both.get("Tags") or chosen.get("Tag"):
        return None  # no object of a store has tags
    prefix = both.get("Prefix", rule.get("Prefix", "")) or ""
    is_covered = below.startswith(prefix) or (
        prefix.startswith(below) and not prefix.removeprefix(below).startswith(f"{TMP}/")
    )
    if not is_covered:
        return None
    name = f"lifecycle rule {rule.get('ID', '')!r} for {prefix or 'everything'!r}"
    expiration = rule.get("Expiration", {})
    if "Days" in expiration or "Date" in expiration:
        return f"{name} that expires objects"
    classes = {one.get("StorageClass") for one in rule.get("Transitions", [])}
    frozen = sorted(classes & set(FROZEN))
    return f"{name} that moves objects to {frozen[0]}" if frozen else None


def _lock_of(answer: dict[str, Any]) -> str:
    found = answer.get("ObjectLockConfiguration", {})
    if found.get("ObjectLockEnabled") != "Enabled":
        return "off"
    return str(found.get("Rule", {}).get("DefaultRetention", {}).get("Mode", "on request"))
