"""What the cluster has and may get: its running nodes, and the node types that its autoscaler may start.

Ray 2.60 tells a job nothing of the node types: they are read from the configuration that the autoscaler on the head was
started with (`ray up`), or from the RayCluster that KubeRay manages.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias, cast

import ray
import yaml
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysnap.errors import describe_failure

Bundle: TypeAlias = Mapping[str, float]
"""What one process needs, all of it on one node: amounts by Ray's names, such as `{"CPU": 1, "GPU": 0.5}`."""

HEAD = "node:__internal_head__"
NODE_GROUP = "ray.io/node-group"
AUTOSCALING_FLAG = "--autoscaling-config="
KUBERNETES_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
HEAD_TIMEOUT_S = 15.0
MAX_SLOTS = 1_000_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeType:
    """A kind of node that the autoscaler may start; at most `most` run at once."""

    name: str
    resources: Bundle
    most: int


@dataclass(frozen=True)
class Node:
    """A running node; `group` is its node type where it says so."""

    resources: Bundle
    group: str | None = None


@dataclass(frozen=True)
class Capacity:
    """The running nodes and the types of further ones; without types nothing is known of what may come."""

    nodes: Sequence[Node]
    types: Sequence[NodeType] = ()

    @property
    def num_running(self) -> Counter[str]:
        """How many nodes of each type run; one that doesn't name its type has the CPUs and GPUs of it."""
        return Counter(self._type_of(node) for node in self.nodes)

    def largest(self, resource: str) -> float:
        """Return the most of a resource that one node has or may have."""
        return max((kind.get(resource, 0.0) for kind, _ in self._kinds()), default=0.0)

    def total(self, resource: str) -> float:
        """Return how much of a resource all nodes have together, those that may come included."""
        return sum(count * kind.get(resource, 0.0) for kind, count in self._kinds())

    def slots(self, bundle: Bundle) -> int:
        """Return how many such bundles fit at once, on the running nodes and on all that may come."""
        return min(MAX_SLOTS, sum(count * fitting(kind, bundle) for kind, count in self._kinds()))

    def slots_now(self, bundle: Bundle) -> int:
        """Return how many such bundles the running nodes hold, whatever runs on them now."""
        return min(MAX_SLOTS, sum(fitting(node.resources, bundle) for node in self.nodes))

    def coming(self, bundle: Bundle) -> list[NodeType]:
        """Return the types that could hold the bundle and of which more nodes may start."""
        running = self.num_running
        return [kind for kind in self.types if running[kind.name] < kind.most and fitting(kind.resources, bundle)]

    def _kinds(self) -> list[tuple[Bundle, int]]:
        running = self.num_running
        known = [(node.resources, 1) for node in self.nodes]
        return known + [(kind.resources, max(0, kind.most - running[kind.name])) for kind in self.types]

    def _type_of(self, node: Node) -> str:
        if node.group is not None:
            return node.group
        if HEAD in node.resources:
            return ""

        def shape(resources: Bundle) -> tuple[float, float]:
            return resources.get("CPU", 0), resources.get("GPU", 0)

        return next((kind.name for kind in self.types if shape(kind.resources) == shape(node.resources)), "")


def fitting(resources: Bundle, bundle: Bundle) -> int:
    """Return how many such bundles a node with these resources holds."""
    amounts = [(resources.get(name, 0.0), amount) for name, amount in bundle.items() if amount > 0]
    return min((int(has / amount + 1e-6) for has, amount in amounts), default=MAX_SLOTS)


def most_cpus(capacity: Capacity, least: Bundle, num_bundles: int) -> float:
    """Return the most CPUs, and no fewer than `least` has, with which so many bundles fit at once.

    Of further nodes only as many are counted on as the running ones leave wanting.
    """
    slots = capacity.slots_now if capacity.slots_now(least) else capacity.slots
    for cpus in range(int(capacity.largest("CPU")), int(least["CPU"]), -1):
        if slots({**least, "CPU": cpus}) >= num_bundles:
            return float(cpus)
    return least["CPU"]


def bundle_text(bundle: Bundle) -> str:
    """Return a bundle in words: `1 GPU and 2 CPUs`."""
    names = sorted((name for name, amount in bundle.items() if amount), key=lambda name: (name != "GPU", name))
    parts = [f"{bundle[name]:g} {name}{'s' if name in ('CPU', 'GPU') and bundle[name] > 1 else ''}" for name in names]
    return " and ".join(parts) or "no resources"


def read_capacity() -> Capacity:
    """Return what the cluster that this process is connected to has, and may get."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = [Node(node["Resources"], node.get("Labels", {}).get(NODE_GROUP)) for node in alive]
    return Capacity(nodes, _node_types(ray.get_runtime_context().gcs_address))


@lru_cache(maxsize=1)
def _node_types(gcs_address: str) -> tuple[NodeType, ...]:
    """Return the node types of the cluster; none where it has no autoscaler, or none that says."""
    published = ray._private.state.state.get_cluster_config()
    if published is not None and published.node_group_configs:
        groups = published.node_group_configs
        return tuple(
            NodeType(group.name, dict(group.resources), MAX_SLOTS if group.max_count < 0 else group.max_count)
            for group in groups
        )
    config = autoscaler_config(gcs_address)
    if config is None:
        head = next((node["NodeID"] for node in ray.nodes() if node["Alive"] and HEAD in node["Resources"]), None)
        if head is None or head == ray.get_runtime_context().get_node_id():
            return ()
        config = _config_of_head(head, gcs_address)
    return types_of(config) if config else ()


def _config_of_head(head: str, gcs_address: str) -> Mapping[str, Any] | None:
    there = NodeAffinitySchedulingStrategy(head, soft=False)
    task = ray.remote(autoscaler_config).options(num_cpus=0, scheduling_strategy=there).remote(gcs_address)
    try:
        found: Mapping[str, Any] | None = ray.get(task, timeout=HEAD_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        logger.warning("the cluster's node types can't be read on its head: %s", describe_failure(error))
        return None
    return found


def autoscaler_config(gcs_address: str) -> Mapping[str, Any] | None:
    """Return the autoscaler's configuration, in the form of `ray up`; None where this machine has none."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_text("utf-8", errors="replace").split("\0")
        except OSError:  # the process has ended
            continue
        files = [argument.removeprefix(AUTOSCALING_FLAG) for argument in arguments if AUTOSCALING_FLAG in argument]
        if files and f"--gcs-address={gcs_address}" in arguments:
            try:
                found = yaml.safe_load(Path(files[0]).read_text("utf-8"))
            except (OSError, yaml.YAMLError) as error:
                logger.warning("the cluster's node types can't be read: %s", describe_failure(error))
                return None
            return found if isinstance(found, dict) else None
    return _kuberay_config()


def _kuberay_config() -> Mapping[str, Any] | None:
    """Return what KubeRay's autoscaler works by; where there is one, the service account of the head may read it."""
    cluster = os.environ.get("RAY_CLUSTER_NAME")
    is_private = not os.environ.get("RAY_ADDRESS")  # which KubeRay sets in every pod
    if cluster is None or is_private or not KUBERNETES_NAMESPACE.is_file():
        return None
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

    try:
        client = node_provider.KubernetesHttpApiClient(KUBERNETES_NAMESPACE.read_text("utf-8").strip())
        found = autoscaling_config._derive_autoscaling_config_from_ray_cr(client.get(f"rayclusters/{cluster}"))
    except Exception as error:  # noqa: BLE001 - whatever Kubernetes answers: then nothing is known of what may come
        logger.info("the node types of RayCluster %s can't be read: %s", cluster, describe_failure(error))
        return None
    return cast(Mapping[str, Any], found)


def types_of(config: Mapping[str, Any]) -> tuple[NodeType, ...]:
    """Return the node types of an autoscaler's configuration other than the head's, which exists already."""
    most_in_all = config.get("max_workers", 2)  # `ray up` without it starts two at most
    types = []
    for name, kind in (config.get("available_node_types") or {}).items():
        most = kind.get("max_workers", 0 if name == config.get("head_node_type") else most_in_all)
        if most > 0 and kind.get("resources"):
            types.append(NodeType(name, kind["resources"], min(most, most_in_all)))
    return tuple(types)
