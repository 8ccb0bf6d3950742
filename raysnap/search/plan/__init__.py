"""Plan a search as frozen data without tensors: prefix trees, rungs, walks and partitions."""
