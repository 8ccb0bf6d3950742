"""deploy/*.yaml: one cluster in two forms, a token from a secret, nothing public; valid for KubeRay's own schemas.

`RAYSNAP_KUBERAY_CRDS=DIR`, a folder with KubeRay's published ray.io_rayclusters.yaml and ray.io_rayjobs.yaml (in its
repository: helm-chart/kuberay-operator/crds), validates against the schemas that the operator itself installs.
"""

import copy
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from raysnap.config.load import find_config
from tests.support import ROOT

MANIFESTS = {path.stem: path for path in (ROOT / "deploy").glob("*.yaml")}
CRDS = os.environ.get("RAYSNAP_KUBERAY_CRDS")


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all(MANIFESTS[name].read_text(encoding="utf-8")))


@pytest.fixture
def cluster() -> dict:
    (document,) = documents("raycluster")
    return document["spec"]


@pytest.fixture
def job() -> dict:
    (document,) = documents("rayjob")
    return document["spec"]


def groups(cluster: dict) -> Iterator[dict]:
    yield cluster["headGroupSpec"]
    yield from cluster["workerGroupSpecs"]


def mappings(value: Any) -> Iterator[dict]:
    """Yield every mapping inside a value."""
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from mappings(child)


def test_the_job_runs_on_the_cluster_of_the_other_file(job, cluster):
    assert job["rayClusterSpec"] == cluster


def test_the_token_comes_from_a_secret_and_is_in_no_file(cluster):
    assert cluster["authOptions"] == {"mode": "token", "secretName": "raysnap-token"}
    for path in MANIFESTS.values():
        text = path.read_text(encoding="utf-8")
        assert "kind: Secret" not in text
        assert "RAY_AUTH_TOKEN" not in text
        assert not re.search(r"\b[0-9a-f]{32,}\b", text)


def test_no_port_is_public(cluster):
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    everything = [one for name in MANIFESTS for document in documents(name) for one in mappings(document)]
    assert not [one for one in everything if {"hostPort", "hostNetwork", "nodePort"} & one.keys()]
    assert not [one for one in everything if one.get("kind") in ("Ingress", "Route", "Gateway")]
    assert not [one for one in everything if "LoadBalancer" in one.values() or "NodePort" in one.values()]


def test_the_network_policy_covers_every_pod(cluster):
    (policy,) = [one for one in documents("storage") if one["kind"] == "NetworkPolicy"]
    labels = policy["spec"]["podSelector"]["matchLabels"].items()
    assert all(labels <= group["template"]["metadata"]["labels"].items() for group in groups(cluster))
    assert not [source for rule in policy["spec"]["ingress"] for source in rule["from"] if "ipBlock" in source]


def test_gpu_workers_start_from_none_and_ask_for_their_gpu(cluster):
    assert cluster["enableInTreeAutoscaling"] is True
    (group,) = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["replicas"]) == (0, 0)
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_all_pods_share_a_folder_and_have_shared_memory(cluster):
    (claim,) = [one for one in documents("storage") if one["kind"] == "PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in groups(cluster):
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["shared"]["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
        assert volumes["shared-memory"]["emptyDir"]["medium"] == "Memory"
        (container,) = pod["containers"]
        places = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert places == {"/shared": "shared", "/dev/shm": "shared-memory"}


def test_no_pod_runs_as_root_or_may_become_it(cluster):
    for group in groups(cluster):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }


def test_ray_is_the_version_that_constraints_txt_names(cluster):
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()


def test_the_job_is_a_command_that_a_second_try_continues(job):
    program, verb, config, *rest = shlex.split(job["entrypoint"])
    assert (program, verb) == ("raysnap", "generate")
    assert find_config(config).is_file()
    places = [word.partition("=")[2] for word in rest if "=" in word]
    assert all(place.startswith("/shared/") for place in places) and len(places) == 3
    assert job["backoffLimit"] and rest[-1] == "--resume"
    assert yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"].isdigit()


# KubeRay's own schemas


def strict(schema: Any) -> Any:
    """Return a CRD's schema in which a field that it doesn't list is an error, as kubectl's validation has it."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if "properties" in closed and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


def published_schema(kind: str) -> dict:
    (path,) = Path(CRDS or "").glob(f"ray.io_{kind}.yaml")
    versions = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]["versions"]
    (v1,) = [version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1"]
    v1["properties"]["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return strict(v1)


needs_crds = pytest.mark.skipif(not CRDS, reason="RAYSNAP_KUBERAY_CRDS names no folder of KubeRay's schemas")


@needs_crds
@pytest.mark.parametrize("kind", ["raycluster", "rayjob"])
def test_kuberays_published_schema_accepts_it(kind):
    (document,) = documents(kind)
    jsonschema.validate(document, published_schema(f"{kind}s"))


@needs_crds
def test_kuberays_published_schema_would_refuse_a_typo():
    (document,) = documents("raycluster")
    typo = copy.deepcopy(document)
    typo["spec"]["workerGroupSpecs"][0]["minReplica"] = 0
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(typo, published_schema("rayclusters"))
