"""`raysnap doctor`: findings, problems and exit codes."""

from tests.support.cli_commands import run_json, run_text


def test_a_sound_machine_has_findings_and_no_problems(here, capsys):
    document = run_json(capsys, "doctor")
    assert document["ok"] is True
    assert {"Python", "raysnap", "torch", "ray", "GPUs", "disk", "shared memory"} <= {
        finding["what"] for finding in document["findings"]
    }
    assert "No problems found." in run_text(capsys, "doctor")


def test_problems_are_listed_with_exit_code_1(here, capsys, monkeypatch):
    monkeypatch.setattr("raysnap.cli.doctor.MIN_DISK_BYTES", 10**18)
    monkeypatch.setattr("raysnap.cli.doctor.PACKAGES", ("torch", "no_such_package"))
    assert run_json(capsys, "doctor", exit_code=1)["ok"] is False
    out = run_text(capsys, "doctor", exit_code=1)
    assert "free some" in out and "can't be imported" in out and "No problems found" not in out
