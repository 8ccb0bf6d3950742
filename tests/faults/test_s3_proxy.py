"""The proxy in front of an S3 server: each fault happens, and what is asked again is answered."""

import pytest

from raysnap.config.folders import BucketAddress
from raysnap.errors import StoreError
from raysnap.store.backends.client import Client, ConditionFailed
from tests.support.s3_proxy import faulty_proxy
from tests.support.s3_server import BUCKET, environment, s3_server

pytestmark = pytest.mark.slow

ADDRESS = BucketAddress(f"s3://{BUCKET}/proxied")
CONTENT = b"content" * 1000


@pytest.fixture(scope="module")
def server():
    with s3_server() as address, faulty_proxy(int(address.rpartition(":")[2])) as (proxy_address, proxy):
        yield address, proxy_address, proxy


@pytest.fixture
def clients(server, monkeypatch):
    """Return a client of the server, one of the proxy, and the proxy."""
    made = []
    for address in server[:2]:
        for name, value in environment(address).items():
            monkeypatch.setenv(name, value)
        made.append(Client.connect(ADDRESS))
    server[2].seen.clear()
    return *made, server[2]


def once(kind):
    kinds = iter([kind])
    return lambda method, path: next(kinds, None)


@pytest.mark.parametrize("kind", ["cut before", "cut after", "delay", "409", "503"])
def test_a_write_that_meets_a_fault_is_done(clients, kind):
    direct, proxied, proxy = clients
    proxy.choose = once(kind)
    proxied.put(f"put {kind}", CONTENT)
    assert dict(proxy.seen) == {kind: 1}
    assert direct.get(f"put {kind}", 10**6).content == CONTENT


@pytest.mark.parametrize("kind", ["cut before", "cut after", "delay", "503", "short"])
def test_a_read_that_meets_a_fault_is_whole(clients, kind):
    direct, proxied, proxy = clients
    direct.put("read", CONTENT)
    proxy.choose = once(kind)
    assert proxied.get("read", 10**6).content == CONTENT
    assert dict(proxy.seen) == {kind: 1}


def test_an_answer_is_cut_after_the_server_wrote(clients):
    direct, proxied, proxy = clients
    kinds = iter(["cut after"])
    proxy.choose = lambda method, path: next(kinds, "403")
    with pytest.raises(StoreError, match="403"):
        proxied.put("cut", CONTENT)
    assert direct.get("cut", 10**6).content == CONTENT


def test_only_conditional_writes_meet_a_412(clients):
    _, proxied, proxy = clients
    proxy.choose = lambda method, path: "412"
    proxied.put("unconditional", CONTENT)
    assert not proxy.seen
    proxy.choose = once("412")
    with pytest.raises(ConditionFailed):
        proxied.put_if("conditional", CONTENT, None, "write")
    assert dict(proxy.seen) == {"412": 1}
