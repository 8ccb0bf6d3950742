"""A server that cuts, delays and refuses loses nothing; and where it refuses for good, the error says what to do."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from raysnap.cli.app import main
from raysnap.config.folders import store_path
from raysnap.errors import StoreError
from raysnap.store.backends import client as client_module
from raysnap.store.backends.client import Client
from raysnap.store.store import Store
from raysnap.testing.blocks import equal, id_of, make_blocks, put, read
from tests.support.s3_faults import at_random
from tests.support.s3_server import BUCKET, KEYS, environment, faulty_s3_server
from tests.support.store_laws import IS_DEEP

NUM_WRITERS, NUM_COMMITS, NUM_COLLECTORS = (64, 50, 2) if IS_DEEP else (4, 4, 1)
KINDS = ["cut before", "cut after", "delay", "409", "503", "short"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0 if IS_DEEP else 170)]


@pytest.fixture(scope="module")
def server():
    with faulty_s3_server() as (address, faults):
        yield address, faults


@pytest.fixture
def faults(server, monkeypatch, tmp_path):
    address, faults = server
    for name, value in environment(address).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    faults.seen.clear()
    yield faults
    faults.choose = lambda method, path: None


@pytest.fixture
def address(request) -> str:
    return f"s3://{BUCKET}/{request.node.name.replace('[', '-').replace(']', '').replace(' ', '-')}"


@pytest.mark.parametrize("kind", KINDS)
def test_one_writer_stores_and_names_through_faults(faults, address, kind):
    store = Store.open(address, create=True)
    faults.choose = at_random(0.3, [kind])
    for seed in range(3):
        put(store, seed, name="best")
        assert equal(read(store, "best"), make_blocks(seed))
    store.remove_snapshot(id_of(make_blocks(0)))
    faults.choose = lambda method, path: None
    assert faults.seen.total() > 3
    assert {summary.id for summary in store.summaries()} == {id_of(make_blocks(seed)) for seed in (1, 2)}
    assert store.verify()["ok"]


def test_what_goes_while_it_is_asked_for_again_is_missing(faults, address):
    client = Client.connect(store_path(address))
    client.put("tmp/draft-1", bytes(1000))

    def tear_and_delete(method: str, path: str) -> str | None:
        if method != "GET":
            return None
        faults.seen["asked"] += 1
        if faults.seen["asked"] == 2:
            client.delete(["tmp/draft-1"])
        return "short" if faults.seen["asked"] == 1 else None

    faults.choose = tear_and_delete
    with pytest.raises(FileNotFoundError):
        client.get("tmp/draft-1", 2000)


def test_writers_and_collectors_lose_nothing_through_faults(faults, address):
    store = Store.open(address, create=True)
    faults.choose = at_random(0.05, KINDS)
    stop = threading.Event()

    def collect() -> None:
        own = Store.open(address)
        while not stop.is_set():
            own.gc(grace_s=0)

    def work(worker: int) -> list[int]:
        own, kept = Store.open(address), []
        for number in range(NUM_COMMITS):
            seed = 1000 * worker + number
            put(own, seed, 1, name=f"w{worker}-{number}")
            kept.append(seed)
            if number % 3 == 2:
                own.remove_snapshot(id_of(make_blocks(seed, 1)))
                kept.remove(seed)
        return kept

    with ThreadPoolExecutor(NUM_WRITERS + NUM_COLLECTORS) as pool:
        collectors = [pool.submit(collect) for _ in range(NUM_COLLECTORS)]
        try:
            kept = [one.result() for one in [pool.submit(work, worker) for worker in range(NUM_WRITERS)]]
        finally:
            stop.set()
        for collector in collectors:
            collector.result()
    faults.choose = lambda method, path: None
    seeds = [seed for one in kept for seed in one]
    assert {summary.id for summary in store.summaries()} == {id_of(make_blocks(seed, 1)) for seed in seeds}
    assert len(store.refs()) == len(seeds)
    assert store.verify()["ok"]


READS = ["ls", "show best", "diff best other", "stats", "du", "verify", "export best --to out/best.safetensors"]


def refuse_writes(answer: str):
    return lambda method, path: answer if method in ("PUT", "POST", "DELETE") else None


@pytest.mark.parametrize("answer", ["403", "507"])
def test_what_reads_works_where_nothing_can_be_written(faults, address, tmp_path, monkeypatch, capsys, answer):
    monkeypatch.chdir(tmp_path)
    store = Store.open(address, create=True)
    put(store, 1, name="best")
    put(store, 2, name="other")
    faults.choose = refuse_writes(answer)
    for command in READS[:-1]:
        assert main(["store", *command.split(), "--store", address]) == 0, capsys.readouterr().err
    assert equal(read(Store.open(address), "best"), make_blocks(1))


@pytest.mark.parametrize(("answer", "says"), [("403", "these credentials may not do this"), ("507", "no room left")])
def test_a_refused_write_says_what_to_do(faults, address, answer, says):
    store = Store.open(address, create=True)
    faults.choose = refuse_writes(answer)
    for act in (lambda: put(store), lambda: store.gc(0), lambda: Store.open(f"{address}/new", create=True)):
        with pytest.raises(StoreError, match=says) as caught:
            act()
        assert str(caught.value).startswith(f"{address}/") and "\n" not in str(caught.value)
        assert answer in str(caught.value) and "testing" not in str(caught.value)


def test_no_credential_is_in_any_message_or_log(faults, address, caplog, capsys, monkeypatch):
    caplog.set_level(logging.DEBUG)
    store = Store.open(address, create=True)
    put(store, name="best")
    monkeypatch.setattr(client_module, "RETRIES_S", 1)
    for answer in ("403", "507", "503", "cut after"):
        faults.choose = lambda method, path, answer=answer: answer
        for command in ("ls", "gc", "verify", "show best"):
            main(["-v", "--debug", "store", *command.split(), "--store", address])
    out, err = capsys.readouterr()
    for secret in (KEYS["AWS_SECRET_ACCESS_KEY"], KEYS["AWS_ACCESS_KEY_ID"], "Signature", "AWS4-HMAC"):
        assert secret not in out + err + caplog.text, secret
