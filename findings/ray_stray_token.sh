#!/usr/bin/env bash
# ray 2.60.0: a token that some earlier local Ray left in ~/.ray/auth_token breaks clusters that have no token. A driver that
# connects to `auto` turns its token mode on because the file exists. Tasks still run, but the cluster's own calls to the
# driver carry no token, the driver refuses them, and every actor dies before it runs, with a message that blames the
# program: "all references to the actor were removed". With RAY_AUTH_MODE=disabled in the driver, actors live.
set -euo pipefail

folder="$(mktemp -d)"
trap 'kill "$head" 2>/dev/null; wait; rm -rf -- "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check 'ray==2.60.0' >&2
mkdir -p home/.ray
head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >home/.ray/auth_token
export HOME="$folder/home" RAY_USAGE_STATS_ENABLED=0
cat >driver.py <<'PY'
import sys

import ray

ray.init(address="auto", _temp_dir=sys.argv[1], log_to_driver=False, logging_level="ERROR")


@ray.remote
class Actor:
    def live(self):
        return "lives"


@ray.remote
def task():
    return "runs"


try:
    lives = ray.get(Actor.remote().live.remote(), timeout=60)
except ray.exceptions.ActorDiedError as error:
    lives = "died" if "all references to the actor were removed" in str(error) else str(error)
print(ray.get(task.remote(), timeout=60), lives)
PY

RAY_AUTH_MODE=disabled venv/bin/ray start --head --block --port=0 --num-cpus=2 --include-dashboard=false --temp-dir="$folder/ray" >head.log 2>&1 &
head=$!
until grep -q "Ray runtime started" head.log; do sleep 1; done
without="$(venv/bin/python driver.py "$folder/ray" 2>/dev/null)"
disabled="$(RAY_AUTH_MODE=disabled venv/bin/python driver.py "$folder/ray" 2>/dev/null)"
printf 'ray 2.60.0: with a stray token: task %s; with RAY_AUTH_MODE=disabled: task %s\n' "${without/ /, actor }" "${disabled/ /, actor }"
[[ $without == "runs died" && $disabled == "runs lives" ]] || {
    echo "changed: expected 'runs died' and 'runs lives'" >&2
    exit 1
}
