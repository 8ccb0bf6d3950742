"""Architectures as blocks: names, costs, weights as bytes, numerics."""
