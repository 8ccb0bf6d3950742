"""Weights in and out of the store, in the forms of other tools."""
