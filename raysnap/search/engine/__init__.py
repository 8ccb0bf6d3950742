"""Where features come from: the executor, blocks in memory, caches, workers."""
