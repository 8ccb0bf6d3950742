"""cluster.yaml on AWS, which moto answers for: what Ray's launcher makes of it, and what its nodes are."""

import copy
import warnings
from collections.abc import Iterator

import moto
import pytest
import yaml

from tests.support import ROOT

REGION = "us-west-2"


@pytest.fixture(scope="module")
def filled_in(tmp_path_factory) -> Iterator[dict]:
    """Return cluster.yaml with an image, as Ray's launcher fills it in; AWS is moto's until the end."""
    import boto3
    from ray.autoscaler._private.aws import config as launcher
    from ray.autoscaler._private.commands import _bootstrap_config

    patch = pytest.MonkeyPatch()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "testing")
    patch.setenv("AWS_DEFAULT_REGION", REGION)
    patch.setattr(launcher.time, "sleep", lambda _: None)  # for AWS to spread a new role
    patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # for the SSH key
    patch.chdir(ROOT)
    with moto.mock_aws(config={"iam": {"load_aws_managed_policies": True}}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # boto3's
        text = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
        image = boto3.client("ec2", REGION).describe_images()["Images"][0]["ImageId"]
        yield _bootstrap_config(yaml.safe_load(text.replace("ami-EDIT", image)), no_config_cache=True)
    patch.undo()


def test_ray_derives_what_each_node_type_has(filled_in):
    types = filled_in["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    worker = types["gpu_worker"]["resources"]
    assert (worker["CPU"], worker["GPU"]) == (8, 1)


def test_only_ssh_comes_in_from_outside(filled_in):
    import boto3

    groups = boto3.client("ec2", REGION).describe_security_groups()["SecurityGroups"]
    (group,) = [group for group in groups if group["GroupName"] == "ray-autoscaler-raysnap"]
    from_outside = [rule for rule in group["IpPermissions"] if rule["IpRanges"] or rule.get("Ipv6Ranges")]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in from_outside] == [(22, 22)]


@pytest.mark.parametrize(("node_type", "lifecycle"), [("head", None), ("gpu_worker", "spot")])
def test_the_nodes_that_ray_starts_have_the_given_image(filled_in, node_type, lifecycle):
    import boto3
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    provider = AWSNodeProvider(filled_in["provider"], filled_in["cluster_name"])
    wanted = copy.deepcopy(filled_in["available_node_types"][node_type]["node_config"])
    provider.create_node(wanted, {"ray-node-name": node_type, "ray-node-type": "worker"}, 1)
    reservations = boto3.client("ec2", REGION).describe_instances()["Reservations"]
    instances = [instance for reservation in reservations for instance in reservation["Instances"]]
    (instance,) = [one for one in instances if one["InstanceType"] == wanted["InstanceType"]]
    assert instance["ImageId"] == filled_in["available_node_types"][node_type]["node_config"]["ImageId"]
    assert instance.get("InstanceLifecycle") == lifecycle
