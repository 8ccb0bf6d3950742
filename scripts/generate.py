"""`raysnap generate` on the cluster: `ray submit cluster.yaml scripts/generate.py -- CONFIG [key=value …]`."""

import os
import sys

from raysnap.cli.process import run

if __name__ == "__main__":
    os.environ.setdefault("RAY_ADDRESS", "auto")
    run(["generate", *sys.argv[1:]])
