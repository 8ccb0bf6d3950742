#!/usr/bin/env bash
# numpy 2.4.6 with its OpenBLAS 0.3.31: the eigenvalues of a matrix of 36 x 36 take a tenth of a millisecond. Where other processes
# keep the cores busy, they take many times the processor time with OpenBLAS's default of one thread per core, and the same
# as before with OPENBLAS_NUM_THREADS=1: its threads wait for each other busily, each for another's turn on a core.
# Needs two cores. Prints the median of the processor time of one call in ms: with default threads, with one thread.
set -euo pipefail

folder="$(mktemp -d)"
busy=()
trap '((${#busy[@]} == 0)) || kill "${busy[@]}"; rm -rf -- "$folder"' EXIT
cd "$folder"
cores="$(nproc)"
((cores >= 2)) || {
    echo "needs two cores, found $cores" >&2
    exit 2
}
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check 'numpy==2.4.6' >&2
cat >eigenvalues.py <<'PY'
import statistics
import time

import numpy as np

rows = np.random.default_rng(0).standard_normal((36, 36))
covariance = rows @ rows.T
taken = []
for _ in range(10):
    started = time.process_time()
    for _ in range(20):
        np.linalg.eigh(covariance)
    taken.append((time.process_time() - started) / 20)
print(f"{1000 * statistics.median(taken):.2f}")
PY
for ((number = 0; number < 2 * cores; number++)); do
    venv/bin/python -c "while True: pass" &
    busy+=("$!")
done
unset OMP_NUM_THREADS OPENBLAS_NUM_THREADS
default="$(venv/bin/python eigenvalues.py)"
single="$(OPENBLAS_NUM_THREADS=1 venv/bin/python eigenvalues.py)"
printf 'numpy 2.4.6, %s cores, all busy: %s ms by default, %s ms with one thread\n' "$cores" "$default" "$single"
venv/bin/python -c "import sys; sys.exit(not $default > 5 * $single)" || {
    echo "changed: expected more than five times as much by default" >&2
    exit 1
}
