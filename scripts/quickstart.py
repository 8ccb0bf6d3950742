"""`raysnap quickstart` on the cluster: `ray submit cluster.yaml scripts/quickstart.py -- --dir DIR`."""

import os
import sys

from raysnap.cli.process import run

if __name__ == "__main__":
    os.environ.setdefault("RAY_ADDRESS", "auto")
    run(["quickstart", *sys.argv[1:]])
