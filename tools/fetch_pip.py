"""Fetch pip from the package index and install it into the environment that runs this, with the standard library alone.

`scripts/setup` needs it where Python came with neither ensurepip nor pip, as on a bare Debian.
"""

import hashlib
import os
import re
import ssl
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

WHEEL = "pip-26.3-py3-none-any.whl"
SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"
TIMEOUT_S = 60


def main() -> None:
    """Install pip; `argv[1]` is the folder that the wheel is written to."""
    index_url = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/") + "/pip/"
    page = fetch(index_url).decode("utf-8")
    link = re.search(rf'href="([^"#]*{re.escape(WHEEL)})', page)
    if link is None:
        sys.exit(f"{index_url}: expected a link to {WHEEL}, found none; install pip by hand, or set PIP_INDEX_URL")
    wheel = fetch(urllib.parse.urljoin(index_url, link[1]))
    digest = hashlib.sha256(wheel).hexdigest()
    if digest != SHA256:
        sys.exit(f"{WHEEL}: expected sha256 {SHA256}, found {digest}; the download is damaged or not what it says")
    wheel_path = Path(sys.argv[1]) / WHEEL
    wheel_path.write_bytes(wheel)
    subprocess.run([sys.executable, wheel_path / "pip", "install", "--no-index", wheel_path], check=True)


def fetch(url: str) -> bytes:
    """Return the bytes at `url`; certificates are checked against PIP_CERT where it is set, as pip does."""
    context = ssl.create_default_context(cafile=os.environ.get("PIP_CERT"))
    with urllib.request.urlopen(url, timeout=TIMEOUT_S, context=context) as response:
        return response.read()


if __name__ == "__main__":
    main()
