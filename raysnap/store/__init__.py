"""The model store, format 1: blocks, manifests, names, garbage collection."""

from raysnap.store.store import Store

__all__ = ["Store"]
