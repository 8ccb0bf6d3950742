"""Nodes: what is found on one, what differs between several, and every node of a real Ray answers."""

import shutil
import subprocess
from pathlib import Path

import pytest

from raysnap.cluster import nodes
from raysnap.cluster.nodes import Finding, NodeReport, differences, examine_cluster, examine_node


def finding(findings, what: str) -> Finding:
    (found,) = [one for one in findings if one.what == what]
    return found


def report(address: str, *findings: Finding) -> NodeReport:
    return NodeReport(address, is_head=address == "10.0.0.1", findings=findings)


def common(what: str, found: str) -> Finding:
    return Finding(what, found, is_common=True)


def test_a_missing_place_is_looked_up_in_its_nearest_folder(tmp_path):
    findings = examine_node([str(tmp_path / "not" / "yet")])
    assert finding(findings, "disk").found.endswith(f"free at {tmp_path}")
    assert finding(findings, "mount").found.startswith("no folder yet, on ")
    assert " at /" in finding(examine_node([str(tmp_path)]), "mount").found


def test_several_places_are_told_apart(tmp_path):
    names = {one.what for one in examine_node([str(tmp_path), "/"])}
    assert {f"disk {tmp_path}", "disk /", f"mount {tmp_path}", "mount /"} <= names


def test_the_mount_is_the_one_nearest_to_the_place(monkeypatch):
    mounts = "/dev/a / ext4 rw 0 0\nhost:/a\\040b /shared nfs4 rw 0 0\ntmpfs /sha tmpfs rw 0 0\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: mounts)
    assert nodes._mount(Path("/shared/store")) == "nfs4 host:/a b at /shared"
    assert nodes._mount(Path("/sharedx")) == "ext4 /dev/a at /"


GPU = "NVIDIA A10G"


@pytest.mark.parametrize(
    ("listed", "tried", "num_ray_gpus", "found", "problem"),
    [
        ((None, []), ([], None, None), 0, "none; everything runs on the CPU", None),
        (("595.71.05", [GPU]), ([GPU], None, "13.2"), 1, "NVIDIA A10G (driver 595.71.05)", None),
        (
            ("470.57.02", [GPU]),
            ([], "The NVIDIA driver on your system is too old", "13.2"),
            1,
            "NVIDIA A10G (driver 470.57.02)",
            "torch's CUDA 13.2 needs driver 580 or later, found 470.57.02",
        ),
        (
            (None, []),
            ([], "no driver", "13.2"),
            2,
            "none; everything runs on the CPU; Ray counts 2",
            "found 0: no driver",
        ),
        (("595.1", [GPU, GPU]), ([GPU, GPU], None, "13.2"), 1, f"{GPU}, {GPU} (driver 595.1); Ray counts 1", None),
    ],
)
def test_gpus_that_torch_can_not_use_are_a_problem(monkeypatch, listed, tried, num_ray_gpus, found, problem):
    monkeypatch.setattr(nodes, "_nvidia_smi", lambda: listed)
    monkeypatch.setattr(nodes, "_try_gpus", lambda: tried)
    gpus = nodes._gpus(num_ray_gpus)
    assert gpus.found == found
    assert problem in gpus.problem if problem else gpus.problem is None


def test_what_nvidia_smi_lists_is_read(monkeypatch):
    out = "595.71.05, NVIDIA A10G\n595.71.05, NVIDIA A10G\n"
    monkeypatch.setattr(nodes.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, out, ""))
    assert nodes._nvidia_smi() == ("595.71.05", [GPU, GPU])


def test_what_differs_is_one_line_with_its_nodes():
    reports = [
        report("10.0.0.1", common("torch", "2.15.0"), common("ray", "2.60.0"), Finding("disk", "1 GB")),
        report("10.0.0.2", common("torch", "2.14.0"), common("ray", "2.60.0"), Finding("disk", "2 GB")),
        report("10.0.0.3", common("torch", "2.15.0"), common("ray", "2.60.0"), Finding("disk", "3 GB")),
    ]
    assert differences(reports) == ["torch: 2.15.0 on 10.0.0.1, 10.0.0.3; 2.14.0 on 10.0.0.2"]


def test_many_nodes_that_agree_are_counted():
    reports = [report(f"10.0.0.{n}", common("open files", "1024" if n == 7 else "65536")) for n in range(20)]
    assert differences(reports) == ["open files: 65536 on 19 nodes; 1024 on 10.0.0.7"]


def test_every_node_of_a_cluster_answers(ray_local, tmp_path):
    (only,) = examine_cluster([tmp_path])
    assert only.is_head
    assert finding(only.findings, "token").found.startswith("off: ")
    assert finding(only.findings, "clock").problem is None
    assert finding(only.findings, "raysnap").problem is None
    assert {"disk", "mount", "GPUs", "shared memory", "open files"} <= {one.what for one in only.findings}


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there may be a GPU")
def test_a_pretended_gpu_is_one_that_torch_can_not_use():
    gpus = nodes._gpus(1)
    assert gpus.found == "none; everything runs on the CPU; Ray counts 1"
    assert gpus.problem.startswith("expected 1 that torch can use, found 0: ")
