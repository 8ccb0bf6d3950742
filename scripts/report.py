"""`raysnap report` on the cluster: `ray submit cluster.yaml scripts/report.py -- RUN_DIR`."""

import os
import sys

from raysnap.cli.process import run

if __name__ == "__main__":
    os.environ.setdefault("RAY_ADDRESS", "auto")
    run(["report", *sys.argv[1:]])
