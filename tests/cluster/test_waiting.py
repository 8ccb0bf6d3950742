"""Waits are told in one line, and what nothing can give is refused at once where that is known."""

import logging

import pytest

from raysnap.cluster import waiting
from raysnap.cluster.capacity import Capacity, Node, NodeType
from raysnap.errors import ClusterError

BUNDLE = {"CPU": 1, "GPU": 1}
HEAD = Node({"node:__internal_head__": 1.0, "CPU": 2})
GPU_NODE = Node({"CPU": 4, "GPU": 1})
GPU_TYPE = NodeType("gpu_worker", {"CPU": 4, "GPU": 1}, 4)


@pytest.mark.parametrize(
    ("capacity", "said"),
    [
        (
            Capacity([HEAD], [GPU_TYPE]),
            "waiting for 1 GPU and 1 CPU for a trial: no running node has it; gpu_worker may start (0 of 4 are up)",
        ),
        (
            Capacity([HEAD, GPU_NODE], [GPU_TYPE]),
            "waiting for 1 GPU and 1 CPU for a trial: the 1 that the running nodes have room for are in use; "
            "gpu_worker may start (1 of 4 are up)",
        ),
        (
            Capacity([HEAD]),
            "waiting for 1 GPU and 1 CPU for a trial: no running node has it; nothing is known to bring it; add "
            "nodes, or stop the job and ask for less",
        ),
    ],
)
def test_a_wait_says_for_what_and_what_may_end_it(capacity, said):
    assert waiting.describe_wait("a trial", BUNDLE, capacity) == said


@pytest.mark.parametrize(
    ("capacity", "bundle", "num_bundles", "said"),
    [
        (
            Capacity([HEAD]),
            BUNDLE,
            1,
            "1 GPU and 1 CPU, each on one node: found room for 0 on 1.running node, and no node",
        ),
        (
            Capacity([HEAD], [GPU_TYPE]),
            {"GPU": 2},
            1,
            r"types that bring too little: gpu_worker \(1 GPU and 4 CPUs, at most 4\)",
        ),
        (Capacity([HEAD], [GPU_TYPE]), BUNDLE, 5, "each trial needs 5 x 1 GPU and 1 CPU"),
    ],
)
def test_what_nothing_can_give_is_refused_at_once(monkeypatch, capacity, bundle, num_bundles, said):
    monkeypatch.setattr(waiting, "read_capacity", lambda: capacity)
    with pytest.raises(ClusterError, match=said):
        waiting.refuse_impossible("each trial", bundle, num_bundles)


def test_nodes_of_a_cluster_without_types_may_still_join(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    found = iter([Capacity([HEAD]), Capacity([HEAD]), Capacity([HEAD, GPU_NODE])])
    monkeypatch.setattr(waiting, "read_capacity", lambda: next(found))
    assert waiting.refuse_impossible("each trial", BUNDLE).nodes == [HEAD, GPU_NODE]
    monkeypatch.setattr(waiting, "JOIN_S", 0.5)
    monkeypatch.setattr(waiting, "read_capacity", lambda: Capacity([HEAD]))
    with pytest.raises(ClusterError, match="no node types that may bring more"):
        waiting.refuse_impossible("each trial", BUNDLE)


def test_only_a_wait_that_lasts_is_logged(monkeypatch, caplog):
    for name, seconds in (("POLL_S", 0.02), ("SAY_AFTER_S", 0.2)):
        monkeypatch.setattr(waiting, name, seconds)
    monkeypatch.setattr(waiting, "read_capacity", lambda: Capacity([HEAD], [GPU_TYPE]))
    monkeypatch.setattr(waiting, "pending_bundles", lambda: [{"CPU": 1.0, "GPU": 1.0}])
    with caplog.at_level(logging.WARNING), waiting.told_waits("a trial", lambda: [{"CPU": 2}]):
        waiting.time.sleep(0.5)
    assert caplog.messages == []
    with waiting.told_waits("a trial", lambda: [BUNDLE]):
        waiting.time.sleep(0.6)
    assert [message.partition(":")[0] for message in caplog.messages] == ["waiting for 1 GPU and 1 CPU for a trial"]
