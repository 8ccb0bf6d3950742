"""`raysnap doctor`: findings, problems and exit codes."""

from raysnap.cli.app import main
from tests.support.cli_commands import run_json, run_text


def test_a_sound_machine_has_findings_and_no_problems(here, capsys):
    document = run_json(capsys, "doctor")
    assert document["ok"] is True
    assert {"Python", "raysnap", "torch", "ray", "GPUs", "disk", "shared memory"} <= {
        finding["what"] for finding in document["findings"]
    }
    assert "No problems found." in run_text(capsys, "doctor")


def test_problems_are_listed_with_exit_code_1(here, capsys, monkeypatch):
    monkeypatch.setattr("raysnap.cluster.nodes.MIN_DISK_BYTES", 10**18)
    monkeypatch.setattr("raysnap.cluster.nodes.PACKAGES", ("torch", "no_such_package"))
    assert run_json(capsys, "doctor", exit_code=1)["ok"] is False
    out = run_text(capsys, "doctor", exit_code=1)
    assert "free some" in out and "can't be imported" in out and "No problems found" not in out


def test_a_cluster_is_shown_by_node(ray_local, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    document = run_json(capsys, "doctor", str(tmp_path))
    assert (document["ok"], document["differences"]) == (True, [])
    (node,) = document["nodes"]
    assert node["is_head"]
    text = run_text(capsys, "doctor", str(tmp_path))
    assert "on all nodes" in text and f"{node['address']} (head)" in text and "No problems found." in text
    monkeypatch.setattr("raysnap.cluster.nodes.PACKAGES", ("no_such_package",))
    assert f"{node['address']}: no_such_package: can't be imported" in run_text(capsys, "doctor", exit_code=1)


def test_a_relative_place_means_nothing_on_a_cluster(capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert main(["doctor", "runs"]) == 2
    assert "runs: expected an absolute path" in capsys.readouterr().err
