"""Benchmarks and tools use the package as it is: who renames or moves what they import is stopped here."""

import ast
import importlib
from pathlib import Path

import pytest

from tests.support import ROOT

SCRIPTS = sorted(path for folder in ("benchmarks", "tools") for path in (ROOT / folder).rglob("*.py"))


def missing_names(source: str) -> list[str]:
    """Return the names that a source imports from the package and that aren't there."""
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    own = [node for node in imports if node.module and node.module.split(".")[0] == "raysnap"]
    return [f"{node.module}.{name.name}" for node in own for name in node.names if not exists(node.module, name.name)]


def exists(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name) or bool(importlib.import_module(f"{module}.{name}"))
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_a_script_imports_is_there(path: Path):
    assert missing_names(path.read_text("utf-8")) == []


def test_what_is_not_there_is_named():
    source = "from raysnap.errors import DataError, Gone\nfrom raysnap.gone import x\nfrom raysnap.store import index\n"
    assert missing_names(source) == ["raysnap.errors.Gone", "raysnap.gone.x"]
