"""The README keeps its word: every command in it runs as it stands, and its tree is the tree."""

import gzip
import os
import random
import re
import shlex
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.timeout(900)

README = (ROOT / "README.md").read_text(encoding="utf-8")


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in fenced("bash") for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def workplace(quickstart, tmp_path_factory) -> Path:
    """A folder in which the README's commands find what they name: a quickstart, configs, and a download."""
    directory = tmp_path_factory.mktemp("readme")
    shutil.copytree(quickstart.directory, directory / "quickstart")
    (directory / "configs").symlink_to(ROOT / "configs")
    downloads = directory / "Downloads" / "fashion-mnist"
    downloads.mkdir(parents=True)
    noise = random.Random(0)
    for split, count in (("train", 40), ("t10k", 20)):
        images = noise.randbytes(count * 28 * 28)
        labels = bytes(index % 10 for index in range(count))
        with gzip.open(downloads / f"{split}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">4i", 0x803, count, 28, 28) + images)
        with gzip.open(downloads / f"{split}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">2i", 0x801, count) + labels)
    return directory


def run(arguments: list[str], directory: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"HOME": str(directory)}
    return subprocess.run(arguments, cwd=directory, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs_as_it_stands(command, quickstart, workplace):
    if command == "scripts/test":
        assert os.access(ROOT / command, os.X_OK), "it is what runs this very test"
        return
    if command == "scripts/quickstart":
        assert f'raysnap" {quickstart.verb} "$@"' in (ROOT / command).read_text()
        assert quickstart.finished.returncode == 0
        return
    verb, *arguments = [word.replace("~", str(workplace)) for word in shlex.split(command)]
    assert verb == "raysnap"
    if arguments[:2] == ["data", "prepare"]:
        arguments.append("--allow-other-counts")  # the download at hand is 60 images, not the published 70,000
    finished = run([sys.executable, "-m", "raysnap", *arguments], workplace)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout


@pytest.mark.parametrize("snippet", fenced("python"))
def test_every_python_snippet_runs(snippet, workplace):
    finished = run([sys.executable, "-c", snippet], workplace)
    assert finished.returncode == 0, finished.stderr
    assert "orientation" in finished.stdout


def test_the_scripts_that_ray_submit_sends_exist_and_take_what_the_readme_gives_them(workplace):
    sent = re.findall(r"^ray submit cluster.yaml (scripts/\w+\.py) -- (.*)$", README, flags=re.MULTILINE)
    assert sent
    for script, arguments in sent:
        words = [word.replace("/shared", str(workplace / "shared")) for word in shlex.split(arguments)]
        finished = run([sys.executable, str(ROOT / script), *words, "--dry-run"], workplace)
        assert finished.returncode == 0, finished.stderr


def test_the_tree_names_every_file_of_the_package():
    tree = next(block for block in fenced("text") if "raysnap/" in block and "cli.py" in block)
    here = {path.name for path in (ROOT / "raysnap").rglob("*.py") if path.name != "__init__.py"}
    told = set(re.findall(r"[\w]+\.py", tree))
    assert here <= told, f"not in the README's tree: {sorted(here - told)}"
    assert not {name for name in told - here if not list(ROOT.rglob(name))}
