"""The libraries that models come from, one file each, and how a model of any of them is cut into blocks."""
