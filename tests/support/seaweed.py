"""SeaweedFS, a real S3 server that many processes can ask at once: `pip install '.[deep]'`."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.support.s3_server import BUCKET, KEYS

START_S = 60
SERVICES = ("master", "volume", "filer", "s3")
OPTIONS = (
    *("-filer", "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0"),
    *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-master.volumeSizeLimitMB=1024"),
)
ENDS_WITH_US = ("setpriv", "--pdeathsig", "TERM")  # a test that is killed leaves no server


def find_seaweed() -> str | None:
    """Return where its program is; None where it isn't installed."""
    return shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@contextmanager
def seaweed(program: str, folder: Path) -> Iterator[int]:
    """Run a server that keeps its files in the folder, with an empty bucket, and return its port on this machine."""
    folder.mkdir()
    ports = iter(free_ports(2 * len(SERVICES)))
    named = {f"{service}.{kind}": next(ports) for service in SERVICES for kind in ("port", "port.grpc")}
    options = [f"-{name}={port}" for name, port in named.items()] + [*OPTIONS, f"-dir={folder}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*ENDS_WITH_US, program, "-logtostderr", "server", *options],
            stdout=log,
            stderr=log,
            cwd=folder,
            env=os.environ | KEYS,
        )
    try:
        create_bucket(named["s3.port"], process, folder / "log")
        yield named["s3.port"]
    finally:
        process.terminate()  # so that it removes its sockets from /tmp
        process.wait()


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at, below those that the system gives to connections meanwhile."""
    ports = []
    with ExitStack() as held:
        for port in random.sample(range(10_240, 32_768), 1000):
            one = held.enter_context(socket.socket())
            with suppress(OSError):
                one.bind(("127.0.0.1", port))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise OSError(f"expected {count} free ports, found {ports}")


def create_bucket(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Create the bucket, as soon as the server is there."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        region_name=KEYS["AWS_REGION"],
        config=Config(retries={"total_max_attempts": 1}),
    )
    give_up_s = time.monotonic() + START_S
    while True:
        try:
            client.create_bucket(Bucket=BUCKET)
            return
        except (BotoCoreError, ClientError):
            if time.monotonic() > give_up_s or process.poll() is not None:
                raise AssertionError(log.read_text()[-5000:]) from None
            time.sleep(0.2)
