"""Rules of a bucket that would destroy a store are seen before there is one, on a server that tells them."""

import boto3
import pytest

from raysnap.config.folders import BucketAddress
from raysnap.errors import StoreError
from raysnap.store.backends.rules import BucketRules, read_rules
from raysnap.store.store import Store
from tests.support.s3_server import environment, s3_server

EXPIRES = {"Expiration": {"Days": 30}}
HARMFUL = {
    "everything expires": {"Filter": {"Prefix": ""}} | EXPIRES,
    "the store's prefix expires": {"Filter": {"Prefix": "team/"}} | EXPIRES,
    "blocks expire": {"Filter": {"Prefix": "team/store/objects/"}} | EXPIRES,
    "what is large expires": {"Filter": {"And": {"Prefix": "team", "ObjectSizeGreaterThan": 1000}}} | EXPIRES,
    "blocks are frozen": {"Filter": {"Prefix": "team/"}, "Transitions": [{"Days": 9, "StorageClass": "GLACIER"}]},
}
HARMLESS = {
    "another prefix expires": {"Filter": {"Prefix": "logs/"}} | EXPIRES,
    "what is tagged expires": {"Filter": {"Tag": {"Key": "a", "Value": "b"}}} | EXPIRES,
    "temporary files expire": {"Filter": {"Prefix": "team/store/tmp/"}} | EXPIRES,
    "old versions expire": {"Filter": {"Prefix": ""}, "NoncurrentVersionExpiration": {"NoncurrentDays": 9}},
    "uploads are aborted": {"Filter": {"Prefix": ""}, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 3}},
    "a class that answers at once": {
        "Filter": {"Prefix": ""}, "Transitions": [{"Days": 90, "StorageClass": "STANDARD_IA"}],
    },
    "a rule that is off": {"Filter": {"Prefix": ""}, "Status": "Disabled"} | EXPIRES,
}  # fmt: skip


@pytest.fixture(scope="module")
def server():
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(server, monkeypatch, request):
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    name = f"b{abs(hash(request.node.name))}"
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket="lock" in request.node.name)
    return name, client


def order(bucket, rule) -> BucketAddress:
    name, client = bucket
    rules = [{"ID": "mine", "Status": "Enabled"} | rule]
    client.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": rules})
    return BucketAddress(f"s3://{name}/team/store")


@pytest.mark.parametrize("rule", HARMFUL.values(), ids=HARMFUL)
def test_no_store_begins_under_a_rule_that_destroys_it(bucket, rule):
    address = order(bucket, rule)
    with pytest.raises(StoreError, match="lifecycle rule 'mine' for .*take the prefix out of the rule"):
        Store.open(address, create=True)
    assert "Contents" not in bucket[1].list_objects_v2(Bucket=bucket[0])


@pytest.mark.parametrize("rule", HARMLESS.values(), ids=HARMLESS)
def test_a_harmless_rule_is_no_hindrance(bucket, rule):
    address = order(bucket, rule)
    Store.open(address, create=True)
    assert read_rules(address).aborts_uploads == ("AbortIncompleteMultipartUpload" in rule)


def test_a_bucket_without_rules_says_so(bucket):
    assert read_rules(BucketAddress(f"s3://{bucket[0]}/x")) == BucketRules((), False, "off", "off")


def test_versions_and_a_lock_are_seen(bucket):
    name, client = bucket
    retention = {"Mode": "GOVERNANCE", "Days": 1}
    client.put_object_lock_configuration(
        Bucket=name,
        ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": retention}},
    )
    found = read_rules(BucketAddress(f"s3://{name}/x"))
    assert (found.versioning, found.lock) == ("on", "GOVERNANCE")


def test_what_the_server_does_not_tell_is_unknown(bucket):
    assert read_rules(BucketAddress("s3://no-such-bucket/x")) == BucketRules()
