"""What fits the nodes that run and those that may come: arithmetic, and the configurations it is read from."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

from raysnap.cluster import capacity
from raysnap.cluster.capacity import (
    Capacity,
    Node,
    NodeType,
    autoscaler_config,
    bundle_text,
    fitting,
    most_cpus,
    types_of,
)
from tests.support import ROOT

HEAD = Node({"node:__internal_head__": 1.0, "CPU": 8})
BARE_HEAD = Node({"node:__internal_head__": 1.0})
CPU_NODE, GPU_NODE = Node({"CPU": 16}), Node({"CPU": 4, "GPU": 2})
GPU_TYPE = NodeType("gpu_worker", {"CPU": 4, "GPU": 2}, 3)


@pytest.mark.parametrize(
    ("resources", "bundle", "count"),
    [
        ({"CPU": 8}, {"CPU": 1}, 8),
        ({"CPU": 8}, {"CPU": 3}, 2),
        ({"CPU": 8, "GPU": 1}, {"CPU": 1, "GPU": 1}, 1),
        ({"CPU": 8, "GPU": 1}, {"CPU": 1, "GPU": 1 / 3}, 3),
        ({"CPU": 8}, {"CPU": 1, "GPU": 1}, 0),
        ({"CPU": 8}, {"CPU": 1, "GPU": 0}, 8),
        ({}, {"CPU": 1}, 0),
    ],
)
def test_a_node_holds_as_many_bundles_as_its_scarcest(resources, bundle, count):
    assert fitting(resources, bundle) == count


@pytest.mark.parametrize(
    ("capacity", "bundle", "now", "in_all"),
    [
        (Capacity([HEAD]), {"CPU": 1}, 8, 8),
        (Capacity([HEAD, CPU_NODE]), {"CPU": 12}, 1, 1),
        (Capacity([BARE_HEAD], [GPU_TYPE]), {"CPU": 1, "GPU": 1}, 0, 6),
        (Capacity([BARE_HEAD, GPU_NODE], [GPU_TYPE]), {"CPU": 1, "GPU": 1}, 2, 6),
        (Capacity([BARE_HEAD, Node({"CPU": 4, "GPU": 2}, "other")], [GPU_TYPE]), {"GPU": 1}, 2, 8),
        (Capacity([BARE_HEAD] + [GPU_NODE] * 5, [GPU_TYPE]), {"GPU": 1}, 10, 10),
        (Capacity([HEAD], [GPU_TYPE]), {"GPU": 4}, 0, 0),
        (Capacity([]), {"CPU": 1}, 0, 0),
    ],
)
def test_slots_count_running_nodes_and_those_that_may_come(capacity, bundle, now, in_all):
    assert (capacity.slots_now(bundle), capacity.slots(bundle)) == (now, in_all)


def test_types_of_which_all_nodes_run_bring_no_more():
    assert Capacity([BARE_HEAD, GPU_NODE], [GPU_TYPE]).coming({"GPU": 1}) == [GPU_TYPE]
    assert Capacity([BARE_HEAD] + [GPU_NODE] * 3, [GPU_TYPE]).coming({"GPU": 1}) == []
    assert Capacity([BARE_HEAD], [GPU_TYPE]).coming({"CPU": 5}) == []
    assert Capacity([BARE_HEAD], [GPU_TYPE]).largest("GPU") == 2


@pytest.mark.parametrize(
    ("capacity", "num_bundles", "cpus"),
    [
        (Capacity([HEAD]), 1, 8),
        (Capacity([HEAD]), 3, 2),
        (Capacity([HEAD, CPU_NODE]), 1, 16),  # never the CPUs of two nodes
        (Capacity([HEAD, CPU_NODE]), 2, 8),
        (Capacity([HEAD, CPU_NODE]), 100, 1),
        (Capacity([HEAD], [NodeType("big", {"CPU": 64}, 4)]), 1, 8),  # what runs, before what may come
        (Capacity([BARE_HEAD], [NodeType("big", {"CPU": 64}, 4)]), 8, 32),
    ],
)
def test_cpus_are_spread_within_nodes(capacity, num_bundles, cpus):
    assert most_cpus(capacity, {"CPU": 1, "GPU": 0}, num_bundles) == cpus


def test_a_bundle_is_told_in_words():
    assert bundle_text({"CPU": 2, "GPU": 1.0, "memory": 0}) == "1 GPU and 2 CPUs"
    assert bundle_text({"CPU": 1, "GPU": 0.5}) == "0.5 GPU and 1 CPU"


def test_the_types_of_a_configuration_leave_out_its_head():
    workers = {"resources": {"CPU": 8, "GPU": 1}, "min_workers": 0}
    config = {
        "head_node_type": "head",
        "max_workers": 4,
        "available_node_types": {
            "head": {"resources": {"CPU": 4}},
            "gpu": workers,
            "few": workers | {"max_workers": 2},
        },
    }
    assert types_of(config) == (NodeType("gpu", workers["resources"], 4), NodeType("few", workers["resources"], 2))
    assert types_of({}) == ()


def test_the_types_of_a_kuberay_cluster_are_its_groups(monkeypatch, tmp_path):
    cluster = yaml.safe_load((ROOT / "deploy" / "raycluster.yaml").read_text("utf-8"))
    (tmp_path / "namespace").write_text("team\n")
    monkeypatch.setattr(capacity, "KUBERNETES_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("RAY_CLUSTER_NAME", "raysnap")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    answers = {"rayclusters/raysnap": cluster | {"metadata": {"name": "raysnap", "namespace": "team"}}}
    monkeypatch.setattr(KubernetesHttpApiClient, "get", lambda client, path: answers[path])  # Kubernetes itself
    (kind,) = types_of(autoscaler_config("10.0.0.1:6379"))
    assert (kind.name, kind.resources["GPU"], kind.most) == ("gpu", 1, 4)
    answers.clear()
    assert autoscaler_config("10.0.0.1:6379") is None


def test_the_configuration_is_found_by_the_autoscalers_process(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("max_workers: 7\n")
    arguments = ["--gcs-address=127.0.0.1:4", f"--autoscaling-config={path}"]
    with subprocess.Popen([sys.executable, "-c", "input()", *arguments], stdin=subprocess.PIPE) as monitor:
        while str(path) not in Path(f"/proc/{monitor.pid}/cmdline").read_text():  # until it is executed
            os.sched_yield()
        assert autoscaler_config("127.0.0.1:4") == {"max_workers": 7}
        assert autoscaler_config("127.0.0.1:5") is None
        path.write_text("max_workers: [")
        assert autoscaler_config("127.0.0.1:4") is None
        monitor.communicate(b"\n")
