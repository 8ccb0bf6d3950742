#!/usr/bin/env bash
# pyarrow 26.0.1 and s3fs 2026.9.0: an exception inside `with files.open(...)` publishes what was written so far as the object:
# leaving the block closes the stream, and closing is what makes an object of a bucket visible. So a checkpoint that failed
# half-way looks like a whole one. Seen against moto 5.2.5, which answers for S3.
set -euo pipefail

folder="$(mktemp -d)"
server=
trap 'kill $server 2>/dev/null; wait; rm -rf -- "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check 'pyarrow==26.0.1' 's3fs==2026.9.0' >&2
python3 -m venv venv-moto
venv-moto/bin/python -m pip install --quiet --disable-pip-version-check 'moto[server]==5.2.5' >&2
port="$(venv/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
export ADDRESS="127.0.0.1:$port" AWS_ACCESS_KEY_ID=x AWS_SECRET_ACCESS_KEY=x AWS_DEFAULT_REGION=us-east-1
venv-moto/bin/moto_server -H 127.0.0.1 -p "$port" >server.log 2>&1 &
server=$!
until (: >"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do sleep 1; done
cat >raised.py <<'PY'
import os

import s3fs
from pyarrow.fs import FileType, S3FileSystem

address = os.environ["ADDRESS"]
other = s3fs.S3FileSystem(endpoint_url=f"http://{address}", skip_instance_cache=True)
other.mkdir("bucket")
files = S3FileSystem(endpoint_override=address, scheme="http", access_key="x", secret_key="x", region="us-east-1")


def write_and_fail(opened):
    try:
        with opened as stream:
            stream.write(b"half")
            raise RuntimeError
    except RuntimeError:
        pass


write_and_fail(files.open_output_stream("bucket/by-pyarrow"))
write_and_fail(other.open("bucket/by-s3fs", "wb"))
other.invalidate_cache()
print(files.get_file_info("bucket/by-pyarrow").type == FileType.File, other.exists("bucket/by-s3fs"))
PY
found="$(venv/bin/python raised.py 2>/dev/null)"
printf 'after a with block that raised, the object exists: pyarrow 26.0.1 and s3fs 2026.9.0: %s\n' "$found"
[[ $found == "True True" ]] || {
    echo "changed: expected True True" >&2
    exit 1
}
