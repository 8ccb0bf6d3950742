"""Prefix trees, rungs, walks and partitions: frozen data without tensors."""
