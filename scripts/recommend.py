"""`raysnap recommend` on the cluster: `ray submit cluster.yaml scripts/recommend.py -- --store S --data D`."""

import os
import sys

from raysnap.cli.process import run

if __name__ == "__main__":
    os.environ.setdefault("RAY_ADDRESS", "auto")
    run(["recommend", *sys.argv[1:]])
