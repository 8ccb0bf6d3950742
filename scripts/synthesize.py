"""`raysnap synthesize` on the cluster: `ray submit cluster.yaml scripts/synthesize.py -- CONFIG`."""

import os
import sys

from raysnap.cli.app import main

if __name__ == "__main__":
    os.environ.setdefault("RAY_ADDRESS", "auto")
    sys.exit(main(["synthesize", *sys.argv[1:]]))
