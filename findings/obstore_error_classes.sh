#!/usr/bin/env bash
# obstore 0.12.1: a missing object raises an error that is a FileNotFoundError, but an object that exists already raises one that
# is no FileExistsError. Code that treats a bucket as a folder catches the one and not the other.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf -- "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check 'obstore==0.12.1' >&2
cat >errors.py <<'PY'
import obstore
from obstore.exceptions import BaseError
from obstore.store import MemoryStore

store = MemoryStore()
obstore.put(store, "a", b"1")
try:
    obstore.put(store, "a", b"2", mode="create")
except BaseError as error:
    exists = error
try:
    obstore.get(store, "b")
except (BaseError, OSError) as error:
    missing = error
print(isinstance(missing, FileNotFoundError), isinstance(exists, FileExistsError), isinstance(exists, OSError))
PY
found="$(venv/bin/python errors.py)"
printf 'obstore 0.12.1: missing is FileNotFoundError, existing is FileExistsError, existing is OSError: %s\n' "$found"
[[ $found == "True False False" ]] || {
    echo "changed: expected True False False" >&2
    exit 1
}
