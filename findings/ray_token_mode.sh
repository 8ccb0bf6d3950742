#!/usr/bin/env bash
# ray 2.60.0: the token that guards a cluster is written to ~/.ray/auth_token with the permissions of any file, 0644 under the
# usual umask of 022: every user of the machine who may enter the home folder reads it and can then run code on the cluster.
# `ray get-auth-token --generate` does so, and so does a local `ray.init()`, which makes the token without being asked.
# Called under `umask 077`, it is 0600.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf -- "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check 'ray[default]==2.60.0' >&2

# Prints the mode of the token file that is made under a umask.
mode_under() {
    mkdir "home-$1"
    (umask "$1" && HOME="$folder/home-$1" venv/bin/ray get-auth-token --generate >/dev/null 2>&1)
    stat -c %a "home-$1/.ray/auth_token"
}

usual="$(mode_under 022)"
careful="$(mode_under 077)"
printf 'ray 2.60.0: the token file has mode %s under umask 022, %s under umask 077\n' "$usual" "$careful"
[[ $usual == 644 && $careful == 600 ]] || {
    echo "changed: expected 644 and 600" >&2
    exit 1
}
