"""scripts/: a set-up that is never left half done, and the commands and entry scripts that use it.

No test builds the real environment: a copy of the scripts runs on a tiny project, with a `uv` that records what it
was asked and puts substitutes in place of the packages.
"""

import hashlib
import http.server
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support import ROOT

TIMEOUT_S = 60

UV = """#!/bin/sh
echo "$*" >>"$PROJECT/uv.calls"
{step}
cat >"$PROJECT/.venv/bin/raysnap" <<'END'
#!/bin/sh
echo "raysnap $*"
END
cat >"$PROJECT/.venv/bin/ruff" <<'END'
#!/bin/sh
name="${{0##*/}}"
echo "$name $*"
[ "$name" != "${{FAILING_CHECK:-}}" ]
END
chmod +x "$PROJECT/.venv/bin/raysnap" "$PROJECT/.venv/bin/ruff"
cp "$PROJECT/.venv/bin/ruff" "$PROJECT/.venv/bin/lint-imports"
cp "$PROJECT/.venv/bin/ruff" "$PROJECT/.venv/bin/mypy"
cd "$PROJECT"/.venv/lib/python3*/site-packages
echo 'import sys; print("pytest", *sys.argv[1:]); sys.exit(3 if "--fail" in sys.argv else 0)' >pytest.py
"""

PYTEST = "pytest -n auto"

OLD_PYTHON = """#!/bin/sh
case "$2" in *exit*) exit 1 ;; *) echo 3.8 ;; esac
"""


class Project:
    """A tiny project in a folder, and its scripts."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.bin_dir = directory / "bin"
        self.venv = directory / ".venv"
        self.bin_dir.mkdir(parents=True)
        shutil.copytree(ROOT / "scripts", directory / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        (directory / "pyproject.toml").write_text("[project]\n")
        (directory / "constraints.txt").write_text("")
        self.install_uv()

    def install_uv(self, step: str = "") -> None:
        self.executable("uv", UV.format(step=step))

    def executable(self, name: str, text: str) -> Path:
        path = self.bin_dir / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def environment(self, **variables: str) -> dict[str, str]:
        return {
            "PATH": f"{self.bin_dir}:/usr/bin:/bin",
            "HOME": str(self.directory),
            "PROJECT": str(self.directory),
            "PYTHON": sys.executable,
            "RAYSNAP_MIN_FREE_MB": "1",
            **variables,
        }

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.directory / "scripts" / script, *arguments],
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    def start(self, script: str, **variables: str) -> subprocess.Popen[str]:
        """Start the script in its own process group, which Ctrl-C reaches even if the test run ignores it."""
        restore = (
            "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
        )
        return subprocess.Popen(
            [sys.executable, "-c", restore, self.directory / "scripts" / script],
            env=self.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def installs(self) -> list[str]:
        path = self.directory / "uv.calls"
        return path.read_text().splitlines() if path.exists() else []


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path / "a project")


# setup: the first time and the second


def test_setup_installs_the_project_with_its_constraints(project):
    done = project.run("setup")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    (install,) = project.installs()
    assert f"--python {project.venv}/bin/python" in install
    assert f"--constraint {project.directory}/constraints.txt" in install
    assert f"--editable {project.directory}[dev]" in install
    assert "setup: done in" in done.stderr


def test_a_second_setup_does_nothing_and_says_nothing(project):
    project.run("setup")
    started = time.monotonic()
    again = project.run("setup")
    assert time.monotonic() - started < 1
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert len(project.installs()) == 1


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_updates_the_environment_in_place(project, name):
    project.run("setup")
    (project.venv / "kept").touch()
    with (project.directory / name).open("a") as file:
        file.write("# changed\n")
    assert "updating" in project.run("setup").stderr
    assert (project.venv / "kept").exists()
    assert len(project.installs()) == 2


def test_a_copied_environment_is_built_again(project, tmp_path):
    project.run("setup")
    (project.venv / "old").touch()
    copy = Project(tmp_path / "copy")
    shutil.copytree(project.venv, copy.venv, symlinks=True)
    assert "building" in copy.run("setup").stderr
    assert not (copy.venv / "old").exists()
    assert str(copy.venv) in (copy.venv / "raysnap-setup").read_text()


def test_help_and_unknown_arguments_build_nothing(project):
    asked = project.run("setup", "--help")
    assert asked.returncode == 0
    assert "usage: scripts/setup" in asked.stdout
    unknown = project.run("setup", "--nonsense")
    assert unknown.returncode == 2
    assert "--nonsense: expected no arguments" in unknown.stderr
    assert not project.venv.exists()


# setup: what it refuses


def test_an_old_python_is_refused_before_anything_is_written(project):
    old = project.executable("python3", OLD_PYTHON)
    done = project.run("setup", PYTHON=str(old))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "expected 3.11 or newer" in done.stderr
    assert f"found {old} 3.8" in done.stderr
    assert not project.venv.exists()


def test_a_python_that_is_not_there_is_named(project):
    done = project.run("setup", PYTHON="no-such-python")
    assert done.returncode == 2
    assert "PYTHON=no-such-python, found none" in done.stderr


def test_a_newer_python_is_found_behind_an_old_python3(project):
    project.executable("python3", OLD_PYTHON)
    project.executable("python3.14", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    assert project.run("setup", PYTHON="").returncode == 0
    assert project.run("setup", PYTHON="").stderr == ""


def test_a_full_disk_is_refused_with_needed_and_free_space(project):
    project.executable("df", "#!/bin/sh\necho header\necho disk 100 0 5120000 0% /\n")
    done = project.run("setup", RAYSNAP_MIN_FREE_MB="5001")
    assert done.returncode == 2
    assert re.search(r"expected 5001 MB of free disk .*, found 5000 MB; free some", done.stderr)
    assert project.installs() == []
    assert project.run("setup", RAYSNAP_MIN_FREE_MB="5000").returncode == 0


def test_an_environment_made_otherwise_is_left_alone(project):
    (project.venv / "bin").mkdir(parents=True)
    done = project.run("setup")
    assert done.returncode == 2
    assert "expected an environment made by scripts/setup" in done.stderr
    assert [path.name for path in project.venv.iterdir()] == ["bin"]


# setup: cut short


def test_after_a_failed_install_the_next_setup_starts_over(project):
    project.install_uv(step='touch "$PROJECT/.venv/half"; echo no such package >&2; exit 7')
    failed = project.run("setup")
    assert failed.returncode == 1
    assert "no such package" in failed.stderr
    assert "setup.log" in failed.stderr
    project.install_uv()
    assert project.run("setup").returncode == 0
    assert not (project.venv / "half").exists()


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGINT, 130, "setup: interrupted; the next run starts over"),
        (signal.SIGTERM, -15, "setup: stopped; the next run starts over"),
        (signal.SIGKILL, -9, ""),
    ],
)
def test_a_setup_stopped_half_way_does_not_count_as_done(project, number, status, said):
    project.install_uv(step='touch "$PROJECT/.venv/half"; exec sleep 60')
    process = project.start("quickstart")
    wait_for((project.venv / "half").exists)
    os.killpg(process.pid, number)
    stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == status
    assert stdout == ""
    assert said in stderr
    project.install_uv()
    assert project.run("quickstart").stdout == "raysnap quickstart\n"
    assert not (project.venv / "half").exists()


def test_an_update_stopped_half_way_does_not_count_as_done(project):
    project.run("setup")
    (project.directory / "constraints.txt").write_text("# changed\n")
    project.install_uv(step="exit 1")
    project.run("setup")
    (project.directory / "constraints.txt").write_text("")
    project.install_uv()
    assert "building" in project.run("setup").stderr


def test_two_setups_at_once_install_once(project):
    project.install_uv(step='while [ ! -e "$PROJECT/go" ]; do sleep 0.05; done')
    first = project.start("setup")
    wait_for(lambda: len(project.installs()) == 1)
    second = project.start("setup")
    assert second.stderr is not None
    assert "another setup is at work" in second.stderr.readline()
    (project.directory / "go").touch()
    for process in (first, second):
        process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0
    assert len(project.installs()) == 1


# the commands


def test_quickstart_passes_arguments_and_keeps_the_folder(project):
    assert project.run("quickstart", "--json", "--dir", "a b").stdout == "raysnap quickstart --json --dir a b\n"


def test_test_passes_its_arguments_to_pytest(project):
    done = project.run("test", "-k", "store")
    assert (done.returncode, done.stdout) == (0, f"{PYTEST} -k store\n")
    assert project.run("test", "--fail").returncode == 3


def test_test_without_arguments_runs_the_checks_too(project):
    done = project.run("test")
    assert done.returncode == 0
    checks = ["ruff check", "ruff format --check --quiet", "lint-imports --no-cache", "mypy "]
    assert done.stdout.splitlines() == [*checks, PYTEST]


@pytest.mark.parametrize("name", ["ruff", "lint-imports", "mypy"])
def test_a_failing_check_fails_test_after_the_tests_ran(project, name):
    done = project.run("test", FAILING_CHECK=name)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == PYTEST


ENTRY_SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py") if "ray submit" in path.read_text())


@pytest.mark.parametrize("name", ENTRY_SCRIPTS)
def test_an_entry_script_runs_its_command_on_its_cluster(tmp_path, name):
    (tmp_path / "raysnap" / "cli").mkdir(parents=True)
    (tmp_path / "raysnap" / "__init__.py").touch()
    (tmp_path / "raysnap" / "cli" / "__init__.py").touch()
    (tmp_path / "raysnap" / "cli" / "process.py").write_text(
        "import os, sys\n\ndef run(argv):\n    print(os.environ['RAY_ADDRESS'], *argv)\n    sys.exit(2)\n"
    )
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / name, "--store", "S"],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert (done.returncode, done.stdout) == (2, f"auto {Path(name).stem} --store S\n"), done.stderr


# where pip comes from on a bare machine


@pytest.fixture
def index_url(tmp_path) -> Iterator[str]:
    """Return a package index on this machine that offers another wheel under pip's name."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import fetch_pip
    finally:
        sys.path.pop(0)
    page_dir = tmp_path / "index" / "simple" / "pip"
    page_dir.mkdir(parents=True)
    (page_dir / fetch_pip.WHEEL).write_bytes(b"not pip")
    (page_dir / "index.html").write_text(f'<a href="{fetch_pip.WHEEL}#sha256={fetch_pip.SHA256}">pip</a>')

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path / "index"))

        def log_message(self, format, *arguments):  # noqa: A002 - the standard library's name
            """Nothing: the test's output is not the place."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/simple"
        server.shutdown()
        thread.join()


def test_a_pip_that_is_not_the_expected_one_is_never_run(index_url, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "fetch_pip.py", tmp_path],
        env={"PIP_INDEX_URL": index_url, "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 1
    assert f"found {hashlib.sha256(b'not pip').hexdigest()}" in done.stderr
    assert list(tmp_path.glob("*.whl")) == []


# what is installed


def test_constraints_are_exact_versions_and_nothing_else():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9._-]+==[0-9][a-z0-9.]*", line)] == []


def test_every_requirement_is_pinned_inside_its_bounds():
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = metadata["optional-dependencies"].values()
    wanted = [Requirement(text) for group in (metadata["dependencies"], *extras) for text in group]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    assert [str(one) for one in wanted if not one.specifier.contains(pins.get(one.name, "0"))] == []
