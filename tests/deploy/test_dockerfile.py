"""deploy/Dockerfile: not root, dependencies in layers before the source, and no file that it shouldn't see."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support import ROOT


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """Return the instructions, a continued one on one line, without comments."""
    text = re.sub(r"^#.*\n", "", (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", "", text).splitlines()
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def copied(steps) -> list[str]:
    return [source for name, rest in steps if name == "COPY" for source in shlex.split(rest)[:-1]]


def test_it_ends_as_a_user_without_rights_and_opens_no_port(steps):
    users = [rest for name, rest in steps if name == "USER"]
    assert users == ["1000:100"], "a number, which Kubernetes can see is not root"
    assert "EXPOSE" not in dict(steps)
    assert "RAY_AUTH_MODE=token" in dict(steps)["ENV"]
    assert not re.search(r"(?i)(token|secret|password)\s*=\s*(?!token)\S", " ".join(rest for _, rest in steps))


def test_dependencies_are_installed_before_any_source_is_copied(steps):
    installs = [index for index, (name, rest) in enumerate(steps) if name == "RUN" and "pip install" in rest]
    first_source = steps.index(("COPY", "raysnap raysnap"))
    assert installs[0] < first_source < installs[1]
    assert "--constraint constraints.txt" in steps[installs[0]][1]
    assert "--no-deps" in steps[installs[1]][1]


def test_it_copies_what_exists_and_gets_to_see_nothing_else(steps):
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if not line.startswith("#")]
    assert patterns[0] == "*", "data, stores, runs, .git and .venv stay out, whatever they are called"
    assert {line[1:] for line in patterns if line.startswith("!")} == set(copied(steps))
    assert [source for source in copied(steps) if not (ROOT / source).exists()] == []


def test_what_it_copies_is_enough_to_build_the_package(steps):
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in ("README.md", "LICENSE", "raysnap", "configs"):
        assert f'"{name}"' in project and name in copied(steps)


def test_its_python_is_one_that_raysnap_runs_on(steps):
    (image,) = [rest for name, rest in steps if name == "FROM"]
    (major, minor) = map(int, re.match(r"python:(\d+)\.(\d+)-slim", image).groups())
    assert (major, minor) >= (3, 11)


@pytest.mark.parametrize("variant", ["cuda", "cpu", "rocm"])
def test_it_installs_pinned_packages_for_the_variant_given(steps, tmp_path, variant):
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    pip = tmp_path / "bin" / "pip"
    pip.parent.mkdir()
    pip.write_text('#!/bin/sh\necho "$*, index: $PIP_EXTRA_INDEX_URL"\n')
    pip.chmod(0o755)
    (pip.parent / "python").symlink_to(sys.executable)
    (install,) = [rest for name, rest in steps if name == "RUN" and "requirements.txt" in rest]
    environment = {"PATH": f"{pip.parent}:{os.environ['PATH']}", "VARIANT": variant}
    command = ["sh", "-c", install]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    if variant == "rocm":
        assert (done.returncode, done.stderr) == (2, "VARIANT: expected cuda or cpu, found rocm\n")
        return
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("https://download.pytorch.org/whl/cpu" if variant == "cpu" else "index:")
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    wanted = [Requirement(line) for line in Path(tmp_path / "requirements.txt").read_text().splitlines()]
    assert {"torch", "ray", "boto3", "mlflow-skinny"} <= {one.name for one in wanted}
    assert [str(one) for one in wanted if one.name not in pins] == []
