"""`raysnap predict` on the cluster: `ray submit cluster.yaml scripts/predict.py -- --store S --model NAME --data D`."""

import os
import sys

from raysnap.cli.process import run

if __name__ == "__main__":
    os.environ.setdefault("RAY_ADDRESS", "auto")
    run(["predict", *sys.argv[1:]])
