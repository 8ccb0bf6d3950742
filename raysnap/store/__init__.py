"""The model store: blocks, manifests, names, garbage collection."""

from raysnap.store.store import Store

__all__ = ["Store"]
