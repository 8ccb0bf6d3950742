"""`raysnap synthesize` on the cluster: `ray submit cluster.yaml scripts/synthesize.py -- CONFIG`."""

import os
import sys

from raysnap.cli.process import run

if __name__ == "__main__":
    os.environ.setdefault("RAY_ADDRESS", "auto")
    run(["synthesize", *sys.argv[1:]])
