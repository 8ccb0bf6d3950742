"""`raysnap config` on the cluster: `ray submit cluster.yaml scripts/config.py -- CONFIG [key=value …]`."""

import os
import sys

from raysnap.cli.process import run

if __name__ == "__main__":
    os.environ.setdefault("RAY_ADDRESS", "auto")
    run(["config", *sys.argv[1:]])
