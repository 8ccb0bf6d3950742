"""Requests to a bucket: errors in words, none of the answers' text, and settings from the environment."""

import sys

import pytest

from raysnap.config.folders import BucketAddress
from raysnap.errors import StoreError, StoreUnreadable
from raysnap.store.backends.client import Client, cause_of
from raysnap.store.store import Store
from tests.support.places import in_memory

ADDRESS = BucketAddress("s3://bucket/store")
ANSWERS = {
    "status code: 403 Forbidden: <Error><Code>InvalidAccessKeyId</Code><AWSAccessKeyId>AKIA</AWSAccessKeyId></Error>": (
        "403 Forbidden InvalidAccessKeyId; these credentials may not do this"
    ),
    "status code: 404 Not Found: <Code>NoSuchBucket</Code>": "there is no such bucket",
    "status code: 301 Moved Permanently": "the bucket is in another region; set AWS_REGION",
    "status code: 503 Service Unavailable: <Code>SlowDown</Code>": "the server is busy",
    "status code: 507 Insufficient Storage": "there is no room left",
    "status code: 403 Forbidden: <Code>XMinioStorageFull</Code>": "there is no room left",
    "status code: 418 I am a teapot": "the server answers 418 I am a teapot",
    "error sending request, kind: Connect, retry_timeout: 60s": "the server can't be reached",
    "operation timed out": "no answer within 60 seconds",
    "PUT http://169.254.169.254/latest/api/token status code: 403 Forbidden": "no credentials were found",
    "something else": "ValueError; try again",
}


@pytest.mark.parametrize(("text", "says"), ANSWERS.items(), ids=[text[:40] for text in ANSWERS])
def test_an_error_says_the_cause_and_what_to_do(text, says):
    said = cause_of(ValueError(text))
    assert says in said
    assert "AKIA" not in said and "<" not in said and "http" not in said


def test_without_the_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(StoreError, match=r"pip install 'raysnap\[s3\]'"):
        Store.open(ADDRESS)


def test_a_server_that_is_not_there_is_named_with_the_key(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr("raysnap.store.backends.client.RETRIES_S", 1)
    with pytest.raises(StoreUnreadable, match="store/store.json: can't be read: the server can't be reached"):
        Store.open(ADDRESS)


def test_a_document_longer_than_asked_for_is_not_read_whole():
    client = in_memory().connect()
    client.put("a", bytes(1000))
    assert len(client.get("a", 10).content) == 11
    assert client.requests.read_bytes == 11


def test_requests_are_counted_by_kind():
    client: Client = in_memory().connect()
    client.put("a/b", b"1")
    client.get("a/b", 10)
    client.head("a/b")
    client.list_below("a")
    client.delete(["a/b", "a/c"])
    assert client.requests.to_dict() == {
        "num_get": 1, "num_head": 1, "num_list": 1, "num_put": 1, "num_delete": 1, "read_bytes": 1, "written_bytes": 1,
    }  # fmt: skip
