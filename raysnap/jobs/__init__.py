"""The jobs that make snapshots: from a plan to rows and a filled store."""
