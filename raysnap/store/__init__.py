"""The model store, format 1: blocks, manifests, names, garbage collection."""
