#!/usr/bin/env bash
# obstore 0.12.1: an answer that breaks off half-way is asked for again when an object is read, and not when objects are
# listed: the listing fails at once, whatever the retry configuration says. And a write that the server answers with 409, come
# again, raises AlreadyExistsError without a retry, even one that may replace what is there. Code that trusts the client's
# retries fails under load.
set -euo pipefail

folder="$(mktemp -d)"
server=
trap 'kill $server 2>/dev/null; wait; rm -rf -- "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check 'obstore==0.12.1' >&2
cat >server.py <<'PY'
import http.server
import sys
from pathlib import Path

LISTING = b"<ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated></ListBucketResult>"


class Torn(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        with Path("asked").open("a") as file:
            file.write("LIST\n" if "list-type" in self.path else "GET\n")
        body = LISTING if "list-type" in self.path else b"x" * 1000
        self.send_response(200)
        for name, value in (("Content-Length", len(body)), ("ETag", '"e"'), ("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")):
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        self.close_connection = True

    def do_PUT(self):
        with Path("asked").open("a") as file:
            file.write("PUT\n")
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(409)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Torn)
server.serve_forever()
PY
port="$(venv/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
venv/bin/python server.py "$port" &
server=$!
until (: >"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do sleep 0.2; done
cat >ask.py <<'PY'
import sys
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

retries = {"max_retries": 3, "retry_timeout": timedelta(seconds=30), "backoff": {"init_backoff": timedelta(milliseconds=10)}}
store = S3Store(
    "bucket",
    config={"endpoint": f"http://127.0.0.1:{sys.argv[1]}", "access_key_id": "x", "secret_access_key": "x", "region": "x"},
    client_options={"allow_http": True},
    retry_config=retries,
)
errors = []
for ask in (
    lambda: obstore.get(store, "a").bytes(),
    lambda: obstore.list(store).collect(),
    lambda: obstore.put(store, "a", b"1", mode="overwrite"),
):
    try:
        ask()
    except BaseError as error:
        errors.append(type(error).__name__)
asked = Path("asked").read_text().split()
print(asked.count("GET") > 1, asked.count("LIST"), asked.count("PUT"), errors[-1])
PY
found="$(venv/bin/python ask.py "$port")"
printf 'obstore 0.12.1: torn answers: read asked again, listing asked, conflict asked, its error: %s\n' "$found"
[[ $found == "True 1 1 AlreadyExistsError" ]] || {
    echo "changed: expected True 1 1 AlreadyExistsError" >&2
    exit 1
}
