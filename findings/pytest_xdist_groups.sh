#!/usr/bin/env bash
# pytest-xdist 3.8.0 with pytest 9.2.0: `--dist loadgroup` ignores every `xdist_group` mark, without a warning. Tests of one
# group run in several processes, and each process makes the group's session fixtures again. pytest 8.4.2 keeps the groups.
# The marks themselves are valid, and collection shows them. Known upstream as pytest-xdist issue 1386.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf -- "$folder"' EXIT
cd "$folder"
cat >test_groups.py <<'PY'
import os
import time

import pytest


@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(8))
def test_process(number):
    time.sleep(0.2)
    with open("processes.txt", "a") as file:
        file.write(f"{os.getpid()}\n")
PY

# Prints how many processes ran the one group, with this version of pytest.
count_processes() {
    python3 -m venv "venv-$1"
    "venv-$1/bin/python" -m pip install --quiet --disable-pip-version-check "pytest==$1" pytest-xdist==3.8.0 >&2
    rm -f processes.txt
    "venv-$1/bin/python" -m pytest -q -p no:cacheprovider -n 2 --dist loadgroup test_groups.py >&2
    sort -u processes.txt | wc -l
}

old="$(count_processes 8.4.2)"
new="$(count_processes 9.2.0)"
printf 'pytest-xdist 3.8.0: one group ran in %d process(es) with pytest 8.4.2, in %d with pytest 9.2.0\n' "$old" "$new"
((old == 1 && new == 2)) || {
    echo "changed: expected 1 and 2" >&2
    exit 1
}
