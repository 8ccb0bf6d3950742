"""Datasets of texts: files, the tokens that models see of them, and built-in tasks."""
