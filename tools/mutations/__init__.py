"""Protections, each switched off by one change of the code: the lists that `tools/mutants.py` tries."""
