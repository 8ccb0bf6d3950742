"""`raysnap search` on the cluster: `ray submit cluster.yaml scripts/search.py -- --store S --data D`."""

import os
import sys

from raysnap.cli.process import run

if __name__ == "__main__":
    os.environ.setdefault("RAY_ADDRESS", "auto")
    run(["search", *sys.argv[1:]])
