#!/usr/bin/env bash
# ray 2.60.0: where Ray's memory monitor ends one trial's process, `Tuner.fit()` raises RuntimeError and the whole experiment is
# over: `FailureConfig(max_failures=2)` isn't asked, and other trials are lost too. The monitor's error (`OutOfMemoryError`) is
# neither a `RayActorError` nor a `RayTaskError`, and Tune's manager of actors knows no third kind. A process that is killed
# in any other way costs its trial a retry, as documented. Here the monitor's threshold is set a little above what the machine
# uses, and one of two trials takes memory until it is ended; at most an eighth of the machine's.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf -- "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check "ray[tune]==2.60.0"
cat >memory.py <<'PY'
import os
import time


def amounts():
    rows = dict(line.split(":") for line in open("/proc/meminfo"))
    return [int(rows[name].split()[0]) for name in ("MemTotal", "MemAvailable")]


total, available = amounts()
os.environ["RAY_memory_usage_threshold"] = f"{1 - available / total + 0.03:.3f}"
import ray
from ray import tune


def train(config):
    held = []
    for step in range(60):
        tune.report({"step": step})
        if config["grows"] and sum(map(len, held)) < total * 1024 // 8:
            held.append(os.urandom(1 << 20) * (total // 1024 // 100))  # a hundredth of the machine's memory
        time.sleep(0.3)


ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
try:
    results = tune.Tuner(
        train,
        param_space={"grows": tune.grid_search([True, False])},
        run_config=tune.RunConfig(
            storage_path=os.path.abspath("results"), verbose=0, failure_config=tune.FailureConfig(max_failures=2)
        ),
    ).fit()
    print(f"fit returned, with {results.num_errors} of 2 trials failed")
except RuntimeError as error:
    print(f"fit raised {type(error).__name__} from {type(error.__cause__).__name__}")
PY
found="$(RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 venv/bin/python memory.py 2>errors.txt | tail -n 1)"
printf 'ray 2.60.0, one of two trials ended by the memory monitor: %s\n' "$found"
[[ $found == "fit raised RuntimeError from OutOfMemoryError" ]] || {
    echo "changed: expected a RuntimeError from fit" >&2
    exit 1
}
