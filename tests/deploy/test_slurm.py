"""deploy/slurm.sbatch, with stand-ins for Slurm's and Ray's commands: what it runs, and what becomes of its token."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT

SCRIPT = ROOT / "deploy" / "slurm.sbatch"
SRUN = """#!/bin/sh
echo "$*" >"$HOME/srun.calls"
stat -c %a "$RAY_AUTH_TOKEN_PATH" >"$HOME/mode"
cat "$RAY_AUTH_TOKEN_PATH" >"$HOME/token"
env >"$HOME/environment"
exit 3
"""


@pytest.fixture
def run(tmp_path) -> subprocess.CompletedProcess[str]:
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", "#!/bin/sh\nprintf 'node-7\\nnode-8\\n'\n")):
        (bin_dir / name).write_text(text)
        (bin_dir / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node-[7-8]"}
    environment = {
        "PATH": f"{bin_dir}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "SLURM_CPUS_PER_TASK": "8",
        **slurm,
    }
    command = ["bash", SCRIPT, "generate", "a b", "--resume"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_it_runs_the_command_on_the_first_node_with_ray_on_all(run, tmp_path):
    call = (tmp_path / "srun.calls").read_text().strip()
    assert call == (
        "--ntasks=2 --ntasks-per-node=1 ray symmetric-run --address node-7:22345 --min-nodes 2 --num-cpus=8 "
        "-- env RAY_ADDRESS=node-7:22345 python -m raysnap generate a b --resume"
    )


def test_its_exit_code_is_that_of_the_command(run):
    assert run.returncode == 3


def test_only_its_owner_reads_the_token_and_nobody_after_its_end(run, tmp_path):
    assert (tmp_path / "mode").read_text().strip() == "600"
    token = (tmp_path / "token").read_text()
    assert len(token) == 64
    assert not list(Path(tmp_path).glob(".raysnap-token-*"))
    seen = (tmp_path / "environment").read_text() + (tmp_path / "srun.calls").read_text() + run.stdout + run.stderr
    assert token not in seen
    assert "RAY_AUTH_MODE=token" in seen
