"""`raysnap data` on the cluster: `ray submit cluster.yaml scripts/data.py -- ls | prepare NAME … | check PATH`."""

import os
import sys

from raysnap.cli.process import run

if __name__ == "__main__":
    os.environ.setdefault("RAY_ADDRESS", "auto")
    run(["data", *sys.argv[1:]])
