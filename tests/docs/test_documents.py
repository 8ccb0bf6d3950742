"""The documents are true: their code runs, and the files, links, commands and keys that they name exist."""

import gzip
import io
import json
import os
import random
import re
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest

from raysnap.cli.app import main
from raysnap.config.load import find_config

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"))]
FOLDERS = "raysnap|scripts|benchmarks|tools|configs|tests|docs|deploy"
RUNS_ON_RAY = ("generate", "sweep", "bench")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """Return the language and the text of each fenced block."""
    return re.findall(r"^```(\S*)\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def lines_of(block: str) -> list[str]:
    """Return a block's commands; one that a backslash continues is one line."""
    return [line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def prose_of(document: Path) -> str:
    """Return a document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


PAGES_WITH_CODE = [page for page in PAGES if {language for language, _ in blocks_of(page)} & {"bash", "python", "yaml"}]


# What runs


@pytest.fixture
def workplace(quickstart, tmp_path, monkeypatch) -> Path:
    """Enter a folder that has a quickstart's results, the shipped configs, and a small download of Fashion-MNIST."""
    shutil.copytree(quickstart.directory, tmp_path / "quickstart", copy_function=_link_what_never_changes)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    downloads = tmp_path / "Downloads" / "fashion-mnist"
    downloads.mkdir(parents=True)
    noise = random.Random(0)
    for split, count in (("train", 40), ("t10k", 20)):
        with gzip.open(downloads / f"{split}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">4i", 0x803, count, 28, 28) + noise.randbytes(count * 28 * 28))
        with gzip.open(downloads / f"{split}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">2i", 0x801, count) + bytes(index % 10 for index in range(count)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def _link_what_never_changes(source: str, target: str) -> None:
    if "/objects/" in source or source.endswith(".jpg"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=name_of)
def test_the_code_of_a_page_runs_in_its_order(page, quickstart, workplace, capsys):
    run = {"bash": run_commands, "python": run_python, "yaml": read_configuration}
    for language, block in blocks_of(page):
        if language in run:
            run[language](block, quickstart, workplace)
            capsys.readouterr()


def run_commands(block: str, quickstart, workplace: Path) -> None:
    for line in lines_of(block):
        command, *arguments = [word.replace("~", str(workplace)) for word in shlex.split(line)]
        if command == "scripts/quickstart":
            assert f'raysnap" {quickstart.verb} "$@"' in (ROOT / command).read_text()
            assert quickstart.finished.returncode == 0
        elif command == "scripts/test":
            assert os.access(ROOT / command, os.X_OK), "it is what runs this very test"
        else:
            assert command == "raysnap", line
            run_raysnap(line, arguments)


def run_raysnap(line: str, arguments: list[str]) -> None:
    if arguments[:2] == ["data", "prepare"]:
        arguments.append("--allow-other-counts")  # the download at hand has 60 images, the published one 70,000
    if arguments[0] in RUNS_ON_RAY and "--dry-run" not in arguments:
        command = [sys.executable, "-m", "raysnap", *arguments]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert finished.returncode == 0, f"{line}\n{finished.stderr}"
    else:
        assert main(arguments) == 0, line


def run_python(block: str, quickstart, workplace: Path) -> None:
    exec(compile(block, "a document", "exec"), {"__name__": "__main__"})


def read_configuration(block: str, quickstart, workplace: Path) -> None:
    (workplace / "job.yaml").write_text(block, encoding="utf-8")
    assert main(["config", "job.yaml"]) == 0, block


# What is shown only


@cache
def help_of(command: str) -> str:
    """Return what `raysnap COMMAND --help` prints."""
    with redirect_stdout(io.StringIO()) as shown:
        main([*command.split(), "--help"])
    return shown.getvalue()


def shown_commands() -> Iterator[tuple[Path, str]]:
    """Yield every command in a block that does not run: raysnap's, scripts, and what is sent to a cluster."""
    for document in DOCUMENTS:
        for language, block in blocks_of(document):
            for line in lines_of(block) if language in ("text", "") else []:
                line = re.sub(r"^ray submit cluster.yaml (scripts/\w+\.py) --", r"\1", line).partition("  #")[0]
                line = re.sub(
                    r"^(ray job submit .* -- python -m raysnap|sbatch deploy/slurm.sbatch) ", "raysnap ", line
                )
                if re.match(rf"(raysnap [a-z]|({FOLDERS})/)", line):
                    yield document, line


@pytest.mark.parametrize(("document", "line"), [pytest.param(*one, id=one[1][:60]) for one in shown_commands()])
def test_a_command_that_is_only_shown_could_run(document, line):
    first, *words = line.split()
    if first != "raysnap":
        assert os.access(ROOT / first, os.X_OK) or first.endswith(".py"), f"{document.name}: {line}"
        assert (ROOT / first).is_file(), f"{document.name}: {line}"
    options = [word for word in words if word.startswith("--")]
    if first == "raysnap":
        command = " ".join(words[: 2 if words[0] in ("store", "data") else 1])
        shown = help_of(command)
    elif first.startswith("scripts/") and first.endswith(".py"):
        shown = help_of(Path(first).stem)
    else:
        shown = (ROOT / first).read_text(encoding="utf-8")
    assert [option for option in options if option not in shown] == [], f"{document.name}: {line}"
    if "CONFIG" in shown and first == "raysnap" and "/" not in words[1] and words[1].islower():
        assert find_config(words[1]), f"{document.name}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_are_marked_as_run_or_shown(page):
    languages = {language for language, _ in blocks_of(page)}
    unknown = {language for language in languages if language not in ("bash", "python", "yaml", "text")}
    assert {language for language in unknown if not language.startswith("{")} == set()


# What is named


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_relative_link_leads_somewhere(document):
    targets = re.findall(r"\]\(([^)\s]+)\)", prose_of(document))
    for target in targets:
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, heading = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), target
        if heading:
            assert heading in headings_of(path), target


def headings_of(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    titles = re.findall(r"^#+ (.+)$", prose_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path.name != "CHANGELOG.md"], ids=name_of)
def test_every_path_that_a_document_names_exists(document):
    text = document.read_text(encoding="utf-8")
    paths = set(re.findall(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]*[\w/]", text))
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []


def test_the_architecture_lists_every_file_of_the_package():
    listed = re.findall(r"^\| `(raysnap/[\w/]+\.py)` \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    files = [path for path in (ROOT / "raysnap").rglob("*.py") if path.name != "__init__.py"]
    assert sorted(listed) == sorted([*map(name_of, files), "raysnap/__init__.py"])


def test_the_generated_parts_are_up_to_date():
    command = [sys.executable, "tools/write_docs.py", "--check"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_json_keys_are_those_that_commands_print(quickstart):
    text = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (`[^|]+`) \| (`[^|]+) \|$", text, flags=re.MULTILINE)
    keys = {command: set(re.findall(r"`(\w+)`", keys)) for row, keys in table for command in re.findall("`(.+?)`", row)}
    printed = json.loads(quickstart.finished.stdout)
    assert keys["search"] - {"asked"} == set(printed["searches"][0])  # a benchmark's configuration says what it asked
    assert keys["quickstart"] - {"search"} <= set(printed)
    assert keys["generate"] <= set(printed["generated"])
    assert keys["bench"] <= set(printed["benched"])


def test_the_readme_is_short_enough_to_read():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 300
