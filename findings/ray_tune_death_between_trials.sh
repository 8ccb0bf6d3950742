#!/usr/bin/env bash
# ray 2.60.0: with `reuse_actors=True`, a worker process that dies between two trials fails the trial that is to reuse it, at
# once and for good, in spite of `FailureConfig(max_failures=3)`. Tune handles the one death twice, as the actor's and as its
# `reset` call's (`TuneController._actor_failed`, then `_on_error` of the task): the first time it puts the trial back into its
# queue, the second time it finds it there, not running, and gives it up. A worker that dies within a trial costs a retry, as
# documented. Function trainables that take a second are between trials for a few percent of their time.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf -- "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check "ray[tune]==2.60.0"
cat >deaths.py <<'PY'
import os
import signal
import sys
import time

import ray
from ray import tune

WITHIN = sys.argv[1] == "within"


def train(config):
    time.sleep(0.2)
    if WITHIN and config["number"] == 1 and not os.path.exists(config["mark"]):
        open(config["mark"], "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    tune.report({"score": config["number"]})


class KillAfterFirst(tune.Callback):
    def on_trial_complete(self, iteration, trials, trial, **info):
        if not WITHIN and trial.config["number"] == 0:
            os.kill(trial.last_result["pid"], signal.SIGKILL)


ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
mark = os.path.abspath(f"mark-{sys.argv[1]}")
results = tune.Tuner(
    train,
    param_space={"number": tune.grid_search([0, 1, 2]), "mark": mark},
    tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=1),
    run_config=tune.RunConfig(
        name=sys.argv[1],
        storage_path=os.path.abspath("results"),
        failure_config=tune.FailureConfig(max_failures=3),
        callbacks=[KillAfterFirst()],
        verbose=0,
    ),
).fit()
print(len(results.errors))
PY
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=disabled
within="$(venv/bin/python deaths.py within 2>within.log | tail -n 1)"
between="$(venv/bin/python deaths.py between 2>between.log | tail -n 1)"
printf 'ray 2.60.0, 3 trials, max_failures=3, one death: within a trial %s failed, between two trials %s failed\n' "$within" "$between"
[[ "$within" == 0 && "$between" == 1 ]] || {
    echo "changed: expected 0 and 1" >&2
    exit 1
}
