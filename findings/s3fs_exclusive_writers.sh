#!/usr/bin/env bash
# s3fs 2026.9.0: two writers open one key in mode "xb", exclusive creation, and both succeed: the mode is checked against what the
# store has when the file is opened, and the second writer fails only when it closes, after all its bytes are sent. A lock
# file made this way is held by two processes until then. Seen against moto 5.2.5, which answers for S3.
set -euo pipefail

folder="$(mktemp -d)"
server=
trap 'kill $server 2>/dev/null; wait; rm -rf -- "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check 's3fs==2026.9.0' >&2
python3 -m venv venv-moto
venv-moto/bin/python -m pip install --quiet --disable-pip-version-check 'moto[server]==5.2.5' >&2
port="$(venv/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
export ADDRESS="127.0.0.1:$port" AWS_ACCESS_KEY_ID=x AWS_SECRET_ACCESS_KEY=x AWS_DEFAULT_REGION=us-east-1
venv-moto/bin/moto_server -H 127.0.0.1 -p "$port" >server.log 2>&1 &
server=$!
until (: >"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do sleep 1; done
cat >writers.py <<'PY'
import os

import s3fs

files = s3fs.S3FileSystem(endpoint_url="http://" + os.environ["ADDRESS"], skip_instance_cache=True)
files.mkdir("bucket")
first = files.open("bucket/key", "xb")
second = files.open("bucket/key", "xb")
first.write(b"first")
second.write(b"second")
first.close()
try:
    second.close()
    ended = "closed"
except FileExistsError:
    ended = "FileExistsError at close"
print("both opened;", ended)
PY
found="$(venv/bin/python writers.py 2>/dev/null)"
printf 's3fs 2026.9.0: two writers of one key in mode xb: %s\n' "$found"
[[ $found == "both opened; FileExistsError at close" ]] || {
    echo "changed: expected 'both opened; FileExistsError at close'" >&2
    exit 1
}
