"""`raysnap data` on the cluster: `ray submit cluster.yaml scripts/data.py -- ls | prepare NAME … | check PATH`."""

import os
import sys

from raysnap.cli.app import main

if __name__ == "__main__":
    os.environ.setdefault("RAY_ADDRESS", "auto")
    sys.exit(main(["data", *sys.argv[1:]]))
