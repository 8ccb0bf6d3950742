"""The command line: commands, and tables for the terminal."""
