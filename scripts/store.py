"""`raysnap store` on the cluster: `ray submit cluster.yaml scripts/store.py -- ls | show | verify | … --store S`."""

import os
import sys

from raysnap.cli.process import run

if __name__ == "__main__":
    os.environ.setdefault("RAY_ADDRESS", "auto")
    run(["store", *sys.argv[1:]])
