"""From a path or an address to the place of a store."""

from __future__ import annotations

from raysnap.config.folders import BucketAddress, StorePath
from raysnap.store.backends.folder import Folder
from raysnap.store.backends.place import OnRead, Place


def open_place(path: StorePath, on_read: OnRead | None = None) -> Place:
    """Return the place of the store at a path or an address; whether there is a store is not looked at.

    Raises:
        StoreError: the address can't be used.
    """
    if not isinstance(path, BucketAddress):
        return Folder(path, on_read)
    from raysnap.store.backends.block_cache import BlockCache  # what a folder can do without
    from raysnap.store.backends.bucket import Bucket
    from raysnap.store.backends.client import Client

    return Bucket(Client.connect(path), on_read, BlockCache.of_user())
