"""`raysnap doctor` on the cluster: `ray submit cluster.yaml scripts/doctor.py -- [PLACE …]`."""

import os
import sys

from raysnap.cli.process import run

if __name__ == "__main__":
    os.environ.setdefault("RAY_ADDRESS", "auto")
    run(["doctor", *sys.argv[1:]])
