"""The command line: commands, tables for the terminal, and the one place that starts Ray."""
