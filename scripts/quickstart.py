"""`raysnap quickstart` on the cluster: `ray submit cluster.yaml scripts/quickstart.py -- --dir DIR`."""

import os
import sys

from raysnap.cli.app import main

if __name__ == "__main__":
    os.environ.setdefault("RAY_ADDRESS", "auto")
    sys.exit(main(["quickstart", *sys.argv[1:]]))
