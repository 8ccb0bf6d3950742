"""`raysnap sweep` on the cluster: `ray submit cluster.yaml scripts/sweep.py -- CONFIG [key=value …]`."""

import os
import sys

from raysnap.cli.process import run

if __name__ == "__main__":
    os.environ.setdefault("RAY_ADDRESS", "auto")
    run(["sweep", *sys.argv[1:]])
