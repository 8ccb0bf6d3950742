"""The house keeps its shape: imports point down, types are checked, folders and files stay small.

`scripts/test` runs `lint-imports` and `mypy`; here, a mistake that is planted in a copy makes each of them fail.
"""

import graphlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from tests.support import ROOT

PACKAGE = ROOT / "raysnap"
MAX_FILES = 15
MAX_LOOSE_FILES = 6
MAX_LINES = 600
MAX_TEST_NAME = 60
NOT_LOOSE = {"__init__.py", "__main__.py"}  # Python's own names for the package itself
BIN = Path(sys.executable).parent
FOLDERS = ("raysnap", "tests", "benchmarks", "tools", "scripts")
SOURCES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]


def run_in(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a tool of the environment on a copy of the package, and on no other."""
    return subprocess.run([BIN / command[0], *command[1:]], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def copied_package(tmp_path) -> Path:
    """Return a folder with a copy of the whole package and of what configures the tools."""
    shutil.copytree(PACKAGE, tmp_path / "raysnap", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.fixture
def small_package(tmp_path) -> Path:
    """Return a folder with three modules of the package, whose types are checked within seconds."""
    (tmp_path / "raysnap").mkdir()
    for name in ("errors.py", "canonical_json.py"):
        shutil.copy(PACKAGE / name, tmp_path / "raysnap")
    (tmp_path / "raysnap" / "__init__.py").touch()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("config/load.py", "import raysnap.store.store", "imports point down"),
        ("errors.py", "import raysnap.humanize", "imports point down"),
        ("search/plan/walk.py", "import raysnap.search.engine.executor", "inside search"),
        ("store/store.py", "import ray", "ray in few places"),
        ("planning/points.py", "import torch", "planning needs no torch"),
    ],
)
def test_a_planted_import_breaks_its_contract(copied_package, module, line, contract):
    path = copied_package / "raysnap" / module
    path.write_text(f"{path.read_text()}\n\ndef planted():\n    {line}\n")
    checked = run_in(copied_package, "lint-imports", "--no-cache")
    assert checked.returncode == 1, checked.stdout + checked.stderr
    assert f"{contract} BROKEN" in checked.stdout


PLANTED = """

def planted() -> int:
    return "a planted mistake"


def planted_without_types(value):
    return value
"""


def test_planted_wrong_and_missing_types_are_found(small_package):
    path = small_package / "raysnap" / "canonical_json.py"
    path.write_text(path.read_text() + PLANTED)
    checked = run_in(small_package, "mypy")
    assert checked.returncode == 1, checked.stdout + checked.stderr
    codes = re.findall(r"^raysnap/canonical_json\.py:\d+: error: .*\[([\w-]+)\]$", checked.stdout, re.MULTILINE)
    assert sorted(codes) == ["no-untyped-def", "return-value"], checked.stdout
    assert "Found 2 errors in 1 file" in checked.stdout


def test_no_module_imports_itself_by_way_of_others():
    graph = grimp.build_graph("raysnap")
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imports) > 100
    graphlib.TopologicalSorter(imports).prepare()  # raises where there is a cycle, and names it


def test_folders_are_small():
    sizes = {
        folder: len({path.name for path in folder.glob("*.py")} - {"__init__.py"})
        for folder in (PACKAGE, *PACKAGE.rglob("*/"))
    }
    assert len(sizes) > 10
    assert {folder.relative_to(ROOT): size for folder, size in sizes.items() if size > MAX_FILES} == {}


def test_few_files_are_loose():
    loose = {path.name for path in PACKAGE.glob("*.py")} - NOT_LOOSE
    assert len(loose) <= MAX_LOOSE_FILES, sorted(loose)


def test_files_are_short():
    lengths = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


def test_ignored_type_errors_have_a_code():
    bare = re.compile(r"#\s*type:\s*ignore(?!\[[a-z-]+(, ?[a-z-]+)*\])")
    lines = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in SOURCES
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if bare.search(line)
    ]
    assert lines == []


def test_tests_share_code_through_support_alone():
    importing = re.compile(r"^\s*(from|import) tests\.(?!support\b)", re.MULTILINE)
    paths = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py") if importing.search(path.read_text())]
    assert paths == []


def test_names_of_tests_are_short():
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    names = [name for text in texts for name in re.findall(r"\bdef (test_\w+)", text)]
    assert [name for name in names if len(name) > MAX_TEST_NAME] == []
