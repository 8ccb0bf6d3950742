"""A run's directory: written by jobs, read back by reports."""
