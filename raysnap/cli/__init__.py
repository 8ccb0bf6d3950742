"""The command line: verbs, tables for the terminal, and the one place that starts Ray."""
