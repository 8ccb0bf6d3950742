"""Turn features into scores, and say how certain a ranking is."""
