"""A folder as people have it, as a dataset: every file below it, and which image is of which class and split."""
