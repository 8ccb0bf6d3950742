"""Datasets on disk: found, checked, split, decoded once, augmented."""
